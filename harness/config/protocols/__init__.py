"""Protocols as data: one TOML file each, named by their path."""
