"""Models that a recipe names by their name on a hub: their revision, and their files. It loads nothing."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from alignkit.config import InputError

WEIGHTS_AND_ALL = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def revision(name: str, where: str) -> str:
    """The commit that a model's name stands for: the hub's answer, else that of the local cache.

    Raises InputError, one line, for what is neither a folder nor a name that can be resolved.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise InputError(f"{where}: there is no folder {name!r} here")
    answer, cause = _hub_revision(name)
    found = answer or _cached_revision(name)
    if found is None:
        raise InputError(f"{where}: {name!r} is neither a folder here nor a model in the local cache, and {cause}")
    return found


@cache
def _hub_revision(name: str) -> tuple[str | None, str]:
    """The hub's answer, and why there is none. It is asked once in a process, however many stages name the model."""
    hub = import_module("huggingface_hub")
    try:
        return str(hub.model_info(name, timeout=10).sha), ""
    except (hub.errors.RepositoryNotFoundError, hub.errors.GatedRepoError) as error:
        return None, f"the hub has no model of that name that you may read ({type(error).__name__})"
    except Exception as error:  # whatever a missing network raises, the cache may have the answer
        return None, f"the hub cannot be reached ({type(error).__name__})"


def _cached_revision(name: str) -> str | None:
    constants = import_module("huggingface_hub.constants")
    path = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return path.read_text().strip() if path.exists() else None


def local_folder(name: str, where: str, files: Sequence[str] = WEIGHTS_AND_ALL) -> str:
    """The folder that holds a hub model's files, at the revision `revision` gives; fetched if need be."""
    commit = revision(name, where)
    hub = import_module("huggingface_hub")
    try:
        return str(hub.snapshot_download(name, revision=commit, allow_patterns=list(files)))
    except (OSError, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
        raise InputError(f"{where}: {name!r} cannot be fetched ({type(error).__name__})") from error


def tokenizer_folder(name: str, where: str) -> str:
    """As `local_folder`, without the weights."""
    return local_folder(name, where, ["*.json", "*.jinja", "*.model", "*.txt"])
