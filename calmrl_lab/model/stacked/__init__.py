"""The stacked similarity: similarities of several kinds added, with weights that validation items choose."""

from calmrl_lab.model.stacked.canonical_cosine import CanonicalCosine
from calmrl_lab.model.stacked.feature_cosine import FeatureCosine
from calmrl_lab.model.stacked.pair_weighted import PairWeighted

# Importing this package makes these kinds readable from a saved model.
__all__ = ["CanonicalCosine", "FeatureCosine", "PairWeighted"]
