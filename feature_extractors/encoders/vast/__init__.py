"""VAST's four frozen encoders, read from a released VAST, GRAM or PMRL checkpoint."""

from feature_extractors.encoders.vast import variants as variants
