"""Comparisons of rows: paired tests, matched time, two records."""
