"""Watches an update's numbers for over-optimisation, and says when to stop. Knows no model and no loop."""

from dataclasses import dataclass

from alignkit.options.guard import GUARDED, GuardOptions, Then


@dataclass(frozen=True, slots=True)
class Breach:
    """A bound that was crossed."""

    text: str
    """What was seen, and the option that says so."""
    then: Then


def breaches(options: GuardOptions, metrics: dict[str, float], memory: dict[str, float]) -> list[Breach]:
    """The bounds that an update's metrics cross for as many updates in a row as they say.

    `memory` counts the updates in a row, under "guard/<name>". A bound on a number that is not measured (a critic's
    where there is none) is never crossed.
    """
    found: list[Breach] = []
    for name, limit in options.limits().items():
        value = metrics.get(GUARDED[name])
        if value is None:
            continue
        beyond = value > limit.above if limit.above is not None else value < (limit.below or 0.0)
        key = f"guard/{name}"
        memory[key] = memory.get(key, 0.0) + 1 if beyond else 0.0
        if memory[key] >= limit.for_updates:
            bound = f"above {limit.above:g}" if limit.above is not None else f"below {limit.below:g}"
            lasting = f", {memory[key]:.0f} updates in a row" if limit.for_updates > 1 else ""
            found.append(Breach(f"{GUARDED[name]} is {value:.4g}, {bound}{lasting} (guard.{name})", limit.then))
    return found


def fallen(options: GuardOptions, value: float, best: float) -> Breach | None:
    """The breach of a held-out reward that has fallen from its best, if it has."""
    held_out = options.held_out
    if held_out is None or value >= best - held_out.drop:
        return None
    text = f"the held-out reward is {value:.4g}, {best - value:.4g} below its best (guard.held_out)"
    return Breach(text, held_out.then)
