"""Linear algebra of small matrices: spectra, whitening, kernel PCA, positive definite inverses."""
