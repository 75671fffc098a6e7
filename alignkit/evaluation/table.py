"""The rows of an evaluation's table, from measured answers. It knows neither models nor files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.config import InputError
from alignkit.data.placed import placed
from alignkit.evaluation.answers import Answer
from alignkit.evaluation.statistics import Bootstrap, Estimate, standard_error
from alignkit.evaluation.task_metrics import accepted, task_metric
from alignkit.options.evaluate import EvaluateConfig
from alignkit.records import Message, Prompt
from reward_models import world
from reward_models.scores import said

Row = dict[str, Any]
"""model, metric, value, low, high, n (the items behind it); for kl also standard_error."""


@dataclass(frozen=True)
class Table:
    """Makes the rows. The item of every interval is a prompt: its `config.samples` answers count by their mean."""

    config: EvaluateConfig
    prompts: Sequence[Prompt]
    bootstrap: Bootstrap
    judge: str | None
    """The score that win rates follow."""

    def rows(self, name: str, answers: Sequence[Answer], texts: Mapping[str, Estimate]) -> list[Row]:
        """Everything about one model but its win rate. `texts` is what was measured on given texts."""
        mean = self.bootstrap.mean
        found = [(key, self._means([one.scores[key] for one in answers])) for key in answers[0].scores]
        found += self._world_rates(answers).items()
        kl = [one.kl for one in answers if one.kl is not None]
        if len(kl) == len(answers):
            found.append(("kl", self._means(kl)))
        found.append(("length", self._means([float(len(one.ids)) for one in answers])))
        found.append(("finished", self._means([float(one.finished) for one in answers])))
        found += [(key, self._means([one.counts[key] for one in answers])) for key in answers[0].counts]
        rows = [_row(name, key, mean(values), len(values)) for key, values in found]
        for row, (_, values) in zip(rows, found, strict=True):
            if row["metric"] == "kl":
                row["standard_error"] = standard_error(values)
        rows += [_row(name, key, estimate, None) for key, estimate in texts.items()]
        return [*rows, *self._task_rows(name, [one.text for one in answers])]

    def win_rates(self, answers: Mapping[str, Sequence[Answer]], baseline: str) -> list[Row]:
        """Each model against the baseline, prompt by prompt; the baseline itself has none."""
        if self.judge is None:
            return []
        scores = {
            name: [[one.scores[self.judge] for one in of_prompt] for of_prompt in self._by_prompt(several)]
            for name, several in answers.items()
        }
        return [
            _row(name, "win_rate", self.bootstrap.win_rate(values, scores[baseline]), len(values))
            for name, values in scores.items()
            if name != baseline
        ]

    def side_by_side(self, answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
        """The first answer of every model to each of the first `config.shown` prompts."""
        first = {name: [of_prompt[0] for of_prompt in self._by_prompt(several)] for name, several in answers.items()}
        return [
            {
                "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
                "answer": prompt.columns.get(self.config.answer_column),
                "responses": [
                    {
                        "model": name,
                        "text": several[number].text,
                        "turns": _shown(several[number]),
                        "finished": several[number].finished,
                        "scores": several[number].scores,
                    }
                    for name, several in first.items()
                ],
            }
            for number, prompt in enumerate(self.prompts[: self.config.shown])
        ]

    def _task_rows(self, name: str, texts: Sequence[str]) -> list[Row]:
        answers = references(self.prompts, self.config)
        rows: list[Row] = []
        for metric in self.config.metrics:
            found = task_metric(metric, texts, answers, self.bootstrap, self.config.positive_label)
            rows += [_row(name, key, estimate, len(self.prompts)) for key, estimate in found.items()]
        return rows

    def _world_rates(self, answers: Sequence[Answer]) -> dict[str, list[float]]:
        """Shares such as unsafe requests declined, each over the prompts it is of, where the world is the reward."""
        if not any(source and source.kind == "world" for source in (self.config.reward, self.config.gold)):
            return {}
        found: dict[str, list[float]] = {}
        for prompt, of_prompt in zip(self.prompts, self._by_prompt(answers), strict=True):
            asked = next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")
            for key, share in world.rates([asked] * len(of_prompt), [one.text for one in of_prompt]).items():
                found.setdefault(key, []).append(share)
        return found

    def _means(self, values: Sequence[float]) -> list[float]:
        size = self.config.samples
        return [sum(values[n : n + size]) / size for n in range(0, len(values), size)]

    def _by_prompt(self, answers: Sequence[Answer]) -> list[Sequence[Answer]]:
        size = self.config.samples
        return [answers[n : n + size] for n in range(0, len(answers), size)]


def _shown(answer: Answer) -> list[dict[str, str]]:
    """The turns of an episode by role and text, tool calls as JSON."""
    turns = [Message.model_validate(turn) for turn in answer.turns]
    return [{"role": turn.role, "content": said(turn)} for turn in turns]


def references(prompts: Sequence[Prompt], config: EvaluateConfig) -> list[Any]:
    """Each prompt's reference answer. Raises InputError, naming the row, where a task metric cannot be computed from
    it."""

    def answers_of(some: Sequence[Prompt]) -> list[Any]:
        found = [prompt.columns.get(config.answer_column) for prompt in some]
        for metric in config.metrics:
            if None in found:
                raise InputError(
                    f"answer_column: a prompt has no column {config.answer_column!r}, which the metric {metric} needs"
                )
            accepted(metric, found)
        return found

    return placed(config.data, prompts, answers_of)


def _row(model: str, metric: str, estimate: Estimate, n: int | None) -> Row:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {"model": model, "metric": metric, **ends, "n": n}
