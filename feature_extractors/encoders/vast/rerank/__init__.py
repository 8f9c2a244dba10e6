"""VAST's matching head and the tokens it reads."""
