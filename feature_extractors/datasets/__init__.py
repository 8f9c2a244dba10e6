"""Datasets, one file each: a manifest of items with the media or text each modality needs."""

from calmrl_lab.registry import Registry

datasets = Registry("dataset", "feature_extractors.datasets", group="calmrl_lab.datasets")
