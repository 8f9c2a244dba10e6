"""Completion of a store: every missing entry imputed, marked as such, with the error to expect."""
