"""The networks of VAST's encoders."""
