"""Methods: named sets of training settings."""
