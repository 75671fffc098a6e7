"""Draws and tabulates held-out losses of pretraining against size, quantity and quality. It knows no training."""

from pathlib import Path
from typing import Any

from chain import axes_of, save, table

SIZES = ("tiny", "small", "middle", "large")
QUANTITIES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2, "small": 1.0}
QUALITIES = {
    "small": "no noise",
    "light": "light noise, as is",
    "light_cleaned": "cleaned",
    "light_deduplicated": "and deduplicated",
    "heavy": "heavy noise, as is",
    "heavy_cleaned": "cleaned",
    "heavy_deduplicated": "and deduplicated",
}


def tables(found: list[dict[str, Any]]) -> str:
    """Sizes, quantities, qualities of the first seed; the repeated point of all."""
    first = found[0]["models"]
    head = ["nats per token", "bits per byte"]
    sizes = [[name, f"{first[name]['parameters']:,}", *cells(first[name])] for name in SIZES]
    quantities = [[f"{share:g}", f"{1 / share:g}", *cells(first[name])] for name, share in QUANTITIES.items()]
    qualities = [[title, *cells(first[name])] for name, title in QUALITIES.items()]
    stories = [[name, *cells(model)] for name, model in found[0]["continued"].items()]
    seeds = [[f"{run['seed']}", *cells(run["models"]["small"])] for run in found]
    return "\n\n".join(
        [
            table(["model", "parameters", *head], sizes),
            table(["share of the text", "times seen", *head], quantities),
            table(["text", *head], qualities),
            table(["seed", *head], seeds),
            table(["stories260k", *head], stories),
        ]
    )


def cells(model: dict[str, Any]) -> list[str]:
    """Both losses with their intervals."""
    return ["{value:.3f} [{low:.3f}, {high:.3f}]".format(**model[name]) for name in ("nll", "bits_per_byte")]


def picture(found: list[dict[str, Any]], path: Path) -> None:
    """Bits per byte on held-out clean text: against parameters, share of the text, and its cleanness."""
    figure, (left, middle, right) = axes_of(3, width=9.0, height=2.8)
    first = found[0]["models"]
    left.plot(*curve(first, [(first[name]["parameters"], name) for name in SIZES]), "o-", color="C0", ms=4)
    left.set_xlabel("parameters, embeddings included")
    middle.plot(*curve(first, [(share, name) for name, share in QUANTITIES.items()]), "o-", color="C0", ms=4)
    middle.set_xlabel("share of the text, tokens seen alike")
    middle.set_xticks(list(QUANTITIES.values()), ["1/8", "1/4", "1/2", "all"])
    for place, name in enumerate(QUALITIES):
        right.plot(first[name]["bits_per_byte"]["value"], -place, "o", color="C0", ms=5)
    right.set_yticks([-place for place in range(len(QUALITIES))], list(QUALITIES.values()))
    right.margins(y=0.2)
    right.set_xlabel("bits per byte")
    for axes in (left, middle):
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_ylabel("bits per byte")
    left.set_xticks([1e5, 3e5, 1e6, 3e6], ["0.1 M", "0.3 M", "1 M", "3 M"])
    middle.set_xticks(list(QUANTITIES.values()), ["1/8", "1/4", "1/2", "all"])
    for run in found[1:]:
        point = run["models"]["small"]
        value = point["bits_per_byte"]["value"]
        left.plot(point["parameters"], value, "x", color="C1", ms=5)
        middle.plot(1.0, value, "x", color="C1", ms=5)
        right.plot(value, 0, "x", color="C1", ms=5)
    save(figure, path)


def curve(models: dict[str, Any], points: list[tuple[float, str]]) -> tuple[list[float], list[float]]:
    """x, and the bits per byte of the named models."""
    return [x for x, _ in points], [models[name]["bits_per_byte"]["value"] for _, name in points]
