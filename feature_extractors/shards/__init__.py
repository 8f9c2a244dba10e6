"""Finished parts of an extraction: one file per block, and the folder that collects them."""
