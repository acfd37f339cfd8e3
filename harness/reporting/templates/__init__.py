"""The report's page as a jinja2 template; values are escaped for Markdown unless they are Markdown already."""
