"""Protocols and recipes as data, in TOML."""
