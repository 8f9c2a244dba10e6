"""Media files to frames and waveforms."""
