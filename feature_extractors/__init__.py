"""Stage 1: media to features. Frozen encoders run once; what they say is cached in a feature store."""
