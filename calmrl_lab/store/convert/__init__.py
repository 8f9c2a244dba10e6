"""Stores from arrays of other tools and back: import, export, merge and restore."""
