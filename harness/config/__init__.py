"""What is run, as data: protocols and recipes in TOML."""
