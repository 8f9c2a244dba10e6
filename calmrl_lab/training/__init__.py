"""Training of projection heads together with an imputer and an alignment objective."""
