"""Experiments: many runs described by one file, planned, carried out and recorded."""
