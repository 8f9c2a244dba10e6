"""Frozen encoders, one file (or folder) each: prepare a medium on the CPU, encode a batch on a device."""

from calmrl_lab.registry import Registry

encoders = Registry("encoder", "feature_extractors.encoders", group="calmrl_lab.encoders")
