"""Annotation files in the forms that circulate, to items with captions: one reader for all datasets."""
