"""How tables and figures are written: CSV, Markdown, LaTeX, HTML, SVG and PDF."""
