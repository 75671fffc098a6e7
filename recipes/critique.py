"""Data from revised answers: [accelerate launch] recipes/critique.py [RECIPE] [key=value ...]; see --help."""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
# This folder's names would hide packages (`import evaluate`); the checkout's top folder takes its place.
sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]

from alignkit.recipe.launch import launch  # noqa: E402

if __name__ == "__main__":
    launch("critique", here / "examples" / "critique.yaml")
