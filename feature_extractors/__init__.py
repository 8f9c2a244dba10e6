"""Stage 1, media to features: frozen encoders run once, and their outputs are kept in a feature store."""
