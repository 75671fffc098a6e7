"""Recipes: read.py checks one, identity.py gives its stages ids, chain.py runs it, child.py one stage of it."""

from alignkit.recipe.chain import Step, plan, run_chain
from alignkit.recipe.read import Recipe, Stage, load_recipe

__all__ = ["Recipe", "Stage", "Step", "load_recipe", "plan", "run_chain"]
