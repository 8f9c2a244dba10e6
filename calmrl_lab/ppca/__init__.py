"""Probabilistic PCA with missing modalities: statistics, EM, posterior and model choice."""
