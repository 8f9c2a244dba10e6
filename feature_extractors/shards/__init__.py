"""Finished parts of an extraction: one file a block, and the folder that collects them."""
