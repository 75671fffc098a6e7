"""E9 where samples are plenty: 8 openings, and of each thousands of samples for PPO or rankings of 8 samples for DPO.

    python benchmarks/evidence/frontier_few.py --model DIR --stories FILE [--of ppo] [--rankings 48000] [--seeds 0 1 2]

As `frontier_own.py`, with fewer openings: PPO in 600 updates of 64 samples of each opening, or DPO on as many rankings
as are asked for.
"""

from pathlib import Path

from chain import options_of, write_results
from frontier import ARGUMENTS
from frontier_own import one_seed, sizes
from frontier_report import tables

FEW = {"prompts": 8, "judged": 256, "updates": 600, "drawn": 64, "learning_rate": 3e-4}


def main() -> None:
    asked = {**ARGUMENTS, "betas": {**ARGUMENTS["betas"], "default": [0.1, 0.05]}}
    asked["of"] = {"choices": ("ppo", "dpo"), "default": "dpo", "help": "whose policies"}
    asked["rankings"] = {"type": int, "default": 48_000, "help": "dpo: of all openings together"}
    options = options_of("frontier_few", __doc__, **asked)
    given, size = options.given, sizes(options.quick)
    if not options.quick:
        size |= {**FEW, "rankings": given.rankings}
    if given.of == "ppo":
        name, size = "ppo", {**size, "rankings": 0, "betas": given.betas, "dpo_betas": []}
    else:
        name, size = str(size["rankings"]), {**size, "betas": [], "dpo_betas": given.betas}
    model, stories, folder = str(given.model), Path(given.stories), options.out / name
    found = [one_seed(folder / str(seed), model, stories, size, seed) for seed in options.seeds]
    write_results(options.results(f"frontier_few_{name}"), options, {"sizes": size, "runs": found})
    print(tables(found))


if __name__ == "__main__":
    main()
