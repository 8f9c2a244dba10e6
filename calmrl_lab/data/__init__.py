"""Items with missing modalities as training sees them: tables, patterns and scenarios."""
