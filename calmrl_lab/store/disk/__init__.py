"""Bytes on disk: arrays, checksums and atomic replacement."""
