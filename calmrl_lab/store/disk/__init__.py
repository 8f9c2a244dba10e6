"""Bytes on disk: arrays and checksums."""
