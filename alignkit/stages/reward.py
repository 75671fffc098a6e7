"""Reward-model training: Bradley-Terry over all untied pairs of each ranking. Knows no other stage."""

from functools import partial
from pathlib import Path

from torch import Tensor

from alignkit.calibration import check_reload, held_out_metrics, set_normalisation
from alignkit.data.world import limits
from alignkit.loop import Objective, Sums, fit
from alignkit.losses import bradley_terry, centring, ranking_pairs
from alignkit.mixture import sample_of
from alignkit.objective import Readings
from alignkit.options.reward import RewardConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.prepare import finish, load_examples, open_setting, sequences_of
from alignkit.records import Comparison
from alignkit.runs import Run
from alignkit.scorer import Scorer, save_scorer
from alignkit.trie import TrieBatch


def run(config: RewardConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Train a reward model, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format = setting.format

    tokenize = partial(sequences_of, format)
    train, validation, compared = load_examples(
        config.data, Comparison, tokenize, setting, run, config.seed, runtime.token_budget
    )
    scorer = setting.scorer(config.model, config.seed)
    # A constant cancels in every pair: its gradient is rounding noise, which AdamW would blow up to steps.
    scorer.head.bias.requires_grad_(config.centring > 0)
    objective = ranking_objective(config.margin, config.centring)

    def save(folder: Path) -> None:
        set_normalisation(scorer, sample_of(train, config.reference_rows), runtime.token_budget)
        save_scorer(scorer, format, folder)
        check_reload(scorer, folder, [train[0]], runtime.token_budget)

    result = fit(
        scorer, train, validation, objective, config.train, runtime, run, config.seed, setting.accelerator, save
    )
    metrics = held_out_metrics(scorer, validation, runtime.token_budget) if validation else {}
    if config.data.world and compared:
        best = limits(compared)
        metrics |= {"held_out/accuracy_ceiling": best.accuracy, "held_out/nll_floor": best.nll}
    metrics = dict(sorted(metrics.items()))
    finish(run, result, {**metrics, "score_mean": scorer.mean.item(), "score_deviation": scorer.deviation.item()})
    return run.model_dir


def ranking_objective(margin: float, centring_coef: float) -> Objective:
    """Mean over rankings of the mean over their untied pairs, in nats; ties and lone responses add nothing."""

    def read(scorer: Scorer, batch: TrieBatch) -> Readings:
        return {"scores": scorer(batch)}

    def loss(readings: Readings, batch: TrieBatch) -> Sums:
        better, worse, weight = _pairs(batch)
        chosen, rejected = readings["scores"][better], readings["scores"][worse]
        rating = batch.owner_columns["rating"]
        gap = margin * (rating[better] - rating[worse])
        terms = {"ranking": (weight * bradley_terry(chosen, rejected, gap)).sum()}
        if centring_coef:
            terms["centring"] = centring_coef * (weight * centring(chosen, rejected)).sum()
        metrics = {
            "accuracy": (weight * (chosen > rejected)).sum().detach(),
            "score_gap": (weight * (chosen - rejected)).sum().detach(),
        }
        return Sums(terms, metrics)

    def count(batch: TrieBatch) -> dict[str, float]:
        rankings = _pairs(batch)[2].sum().item()
        terms = ["ranking", "accuracy", "score_gap"] + ["centring"] * bool(centring_coef)
        return dict.fromkeys(terms, rankings)

    return Objective(read, loss, count, owner_readings=frozenset({"scores"}))


def _pairs(batch: TrieBatch) -> tuple[Tensor, Tensor, Tensor]:
    return ranking_pairs(batch.owner_columns["rank"], batch.group)
