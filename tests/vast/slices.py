"""The slices of VAST's audio encoder from the whole sound at once: the plain twin of `AudioEncoder.prepare`."""

import numpy as np

from feature_extractors.encoders.vast.preprocessing.fbank import padding
from feature_extractors.media.sampling import middle_of_segments


def cut(features, slices=1, length=1024):
    """float32 [slices, length, bins]: pad, cut into pieces of `length`, split these into `slices` runs, take the lower middle of each."""
    padded = np.concatenate([features, np.zeros((padding(len(features), slices, length), features.shape[1]), np.float32)])
    pieces = padded[: len(padded) // length * length].reshape(-1, length, features.shape[1])
    return np.ascontiguousarray(pieces[middle_of_segments(len(pieces), slices)])
