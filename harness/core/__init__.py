"""What every room uses: errors, registries, input checks, processes, signals, progress. Imports nothing above."""
