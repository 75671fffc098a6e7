"""E9 where samples are plenty: 8 openings, and of each thousands of samples for PPO or rankings of 8 samples for DPO.

    python benchmarks/evidence/frontier_few.py --model DIR --stories FILE [--of ppo] [--rankings 48000] [--seeds 0 1 2]

As `frontier_own.py`, with fewer openings: PPO in 600 updates of 64 samples of each opening, or DPO at one β on as many
rankings as are asked for.
"""

from pathlib import Path

from chain import options_of, write_results
from frontier import ARGUMENTS
from frontier_own import one_seed, sizes
from frontier_report import tables

PPO = {"betas": (0.1, 0.05), "dpo_betas": (), "rankings": 0, "updates": 600, "drawn": 64, "learning_rate": 3e-4}


def main() -> None:
    asked = {name: ARGUMENTS[name] for name in ("model", "stories")}
    asked["of"] = {"choices": ("ppo", "dpo"), "default": "dpo", "help": "whose policies"}
    asked["rankings"] = {"type": int, "default": 48_000, "help": "dpo: of all openings together"}
    options = options_of("frontier_few", __doc__, **asked)
    model, stories, of_ppo = str(options.given.model), Path(options.given.stories), options.given.of == "ppo"
    own = PPO if of_ppo else {"betas": (), "dpo_betas": (0.05,), "rankings": options.given.rankings}
    few = {} if options.quick else {"prompts": 8, "judged": 256, **own}
    size = {**sizes(options.quick), "betas": own["betas"], "dpo_betas": own["dpo_betas"], **few}
    found = [
        one_seed(options.out / options.given.of / str(seed), model, stories, size, seed) for seed in options.seeds
    ]
    name = f"frontier_few_{'ppo' if of_ppo else size['rankings']}"
    write_results(options.results(name), options, {"sizes": size, "runs": found})
    print(tables(found))


if __name__ == "__main__":
    main()
