"""Imputers, one file each: fit on embeddings with gaps, then fill the gaps."""

from calmrl_lab.registry import Registry, exported

imputers = Registry("imputer", "calmrl_lab.imputers")
__getattr__, __dir__ = exported(imputers)
