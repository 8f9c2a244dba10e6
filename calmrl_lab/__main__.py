"""`python -m calmrl_lab`, for launchers that start modules (torchrun)."""

from calmrl_lab.cli import main

if __name__ == "__main__":
    main()
