"""What every long command needs: console, devices, processes, signals and atomic files."""
