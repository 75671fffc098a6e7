"""Packages that only the search for personal data needs. Does not know what they do."""

from functools import cache
from importlib import import_module
from typing import Any

from alignkit.config import InputError


@cache
def optional(module: str) -> Any:
    """The module; raises InputError where its package is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"personal data: {error.name} is not installed; `pip install alignkit[data]`") from error
