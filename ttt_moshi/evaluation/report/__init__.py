"""Reports of evaluations: Markdown, pictures and one HTML page."""
