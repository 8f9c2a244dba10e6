"""What the runs of a report found: scores, errors and shifts collected, averaged and compared."""
