"""Re-ranking: captions against whole items, first by a score of vectors, then by a matching model on the best candidates."""
