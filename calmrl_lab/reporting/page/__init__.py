"""The HTML page of a report: its sections, its text and its templates."""
