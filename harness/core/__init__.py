"""Foundations: errors, registries, input checks, processes, signals, progress. Imports no other part."""
