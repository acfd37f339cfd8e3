"""Reports from records alone: tables, figures, verdicts on published numbers, and the page that holds them."""
