"""LanguageBind (arXiv 2310.01852): pictures, clips, sounds and texts in one space, from the released checkpoints."""

from feature_extractors.encoders.languagebind import encoders as encoders
