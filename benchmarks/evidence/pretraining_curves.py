"""Draws the loss of pretraining runs against the tokens seen. It knows no training.

python benchmarks/evidence/pretraining_curves.py OUT.svg RUNS... (folders of recipes, such as runs/shakespeare)
"""

import sys
from pathlib import Path

from chain import axes_of, save

from alignkit.report.read import read_stages


def main(out: Path, folders: list[Path]) -> None:
    figure, drawn = axes_of(len(folders), width=3.2 * len(folders))
    for axes, folder in zip(drawn, folders, strict=True):
        (run,) = read_stages(folder)
        options = run.record.config
        # An example is a crop: max_length tokens, all but the first predicted.
        tokens = options["train"]["batch_size"] * (options["data"]["max_length"] - 1) / 1e6
        for name, style in (("nll", {"lw": 0.4, "alpha": 0.5}), ("validation/nll", {"marker": "o", "ms": 3})):
            steps, values = zip(*run.curves[name], strict=True)
            label = {"nll": "each step", "validation/nll": "held out"}[name]
            axes.plot([tokens * step for step in steps], values, label=label, **style)
        axes.set_title(folder.name, fontsize=9)
        axes.set_xlabel("million tokens")
        axes.set_ylabel("nats per token")
        axes.legend(fontsize=8, frameon=False)
    save(figure, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
