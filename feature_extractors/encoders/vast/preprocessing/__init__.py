"""Media to the tensors that VAST's encoders take."""
