"""Anchors of items: how far hiding modalities moves them, what is proven about it, and when calibration is worth it."""
