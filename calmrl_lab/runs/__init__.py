"""Run directories: what a training run was asked, what it learned and where it ran."""
