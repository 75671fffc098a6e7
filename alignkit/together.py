"""Work that all ranks do at once, and whose failure each of them hears of. Knows no work."""

from collections.abc import Callable
from typing import TypeVar, cast

from accelerate.utils import gather_object

from alignkit.config import InputError

T = TypeVar("T")


def together(work: Callable[[], T]) -> T:
    """What `work` gives on this rank, once it is done on all. Where it raises InputError on any, all raise one: their
    own or, where theirs went well, the first such rank's; none is left waiting for another."""
    found: T | None = None
    failure: InputError | None = None
    try:
        found = work()
    except InputError as error:
        failure = error
    failures: list[InputError | None] = gather_object([failure])
    told = failure or next((one for one in failures if one is not None), None)
    if told is not None:
        raise told
    return cast("T", found)
