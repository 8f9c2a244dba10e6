"""Evaluation of a trained run: retrieval, missing modalities, classification, diagnostics and significance."""
