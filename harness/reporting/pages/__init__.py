"""Whole reports: Markdown, HTML, CSV."""
