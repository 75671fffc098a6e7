"""`python -m alignkit` is the command `alignkit`; it knows nothing else."""

from alignkit.cli import main

if __name__ == "__main__":
    main()
