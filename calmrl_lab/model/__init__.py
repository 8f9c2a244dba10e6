"""What a run learns: projection heads, their start, and how two items are compared."""
