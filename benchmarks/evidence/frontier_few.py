"""E9 for DPO where rankings are plenty: 8 openings, and of each thousands of rankings of 8 samples.

    python benchmarks/evidence/frontier_few.py --model DIR --stories FILE [--rankings 48000] [--seeds 0 1 2]

As `frontier_own.py`, for DPO alone at one β, with fewer openings and more rankings of each.
"""

from pathlib import Path

from chain import options_of, write_results
from frontier import ARGUMENTS
from frontier_own import one_seed, sizes
from frontier_report import tables


def main() -> None:
    asked = {name: ARGUMENTS[name] for name in ("model", "stories")}
    asked["rankings"] = {"type": int, "default": 48_000, "help": "of all openings together"}
    options = options_of("frontier_few", __doc__, **asked)
    model, stories = str(options.given.model), Path(options.given.stories)
    few = {} if options.quick else {"prompts": 8, "rankings": options.given.rankings, "judged": 256}
    size = {**sizes(options.quick), **few, "betas": (), "dpo_betas": (0.05,)}
    found = [one_seed(options.out / str(seed), model, stories, size, seed) for seed in options.seeds]
    write_results(options.results(f"frontier_few_{size['rankings']}"), options, {"sizes": size, "runs": found})
    print(tables(found))


if __name__ == "__main__":
    main()
