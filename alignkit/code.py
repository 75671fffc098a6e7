"""Python of a user's own that a recipe names, imported only where that is allowed. It knows no stage."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from alignkit.config import InputError


def named_function(path: str, allow_code: bool, option: str) -> Callable[..., Any]:
    """The function that `package.module:function` names, also of a module in the working folder. Raises InputError,
    naming the option, where it is not one, or where the user has not given --allow-code."""
    if not allow_code:
        raise InputError(f"{option}: {path!r} is code; add --allow-code to let this recipe run it")
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{option}: {path!r} cannot be imported: {error}") from error
    if not callable(function):
        raise InputError(f"{option}: {path!r} is not a function")
    return function
