"""The table's rows on answers that are known: the embedded world's own demonstrations, and what is worth nothing."""

import pytest

from alignkit.config import build
from alignkit.data import world as generator
from alignkit.evaluation.answers import Answer
from alignkit.evaluation.statistics import Bootstrap
from alignkit.evaluation.table import Table
from alignkit.options.evaluate import EvaluateConfig
from alignkit.records import Demonstration, Prompt
from reward_models import world

OPTIONS = {"models": ["a", "b"], "gold": {"kind": "world"}, "data": {"world": "prompts", "rows": 2}, "samples": 2}


def answer(prompt: int, sample: int, text: str, score: float) -> Answer:
    ids = tuple(range(len(text.split())))
    return Answer(prompt, sample, text, None, sample == 0, ids, 0.5 * sample, {"gold": score, "gold/brief": 1.0})


def test_rows_of_the_embedded_world_are_what_its_functions_say() -> None:
    shown = [d for d in generator.generate("demonstrations", 60, 5) if isinstance(d, Demonstration)]
    asked = [one.messages[-2].content for one in shown]
    said = [one.messages[-1].content for one in shown]
    prompts = [Prompt(messages=one.messages[:-1]) for one in shown]
    texts = [(one, "") for one in said]  # two samples: the demonstration, and nothing
    answers = [
        answer(p, s, text, world.utility(asked[p], text))
        for p, pair in enumerate(texts)
        for s, text in enumerate(pair)
    ]
    table = Table(build(EvaluateConfig, OPTIONS, ""), prompts, Bootstrap(100), "gold")
    rows = {row["metric"]: row for row in table.rows("a", answers, {})}
    gold = sum(world.utility(p, r) for p, r in zip(asked, said, strict=True)) / 60
    nothing = sum(world.utility(p, "") for p in asked) / 60
    assert rows["gold"]["value"] == pytest.approx((gold + nothing) / 2) and gold > nothing
    rates, empty = world.rates(asked, said), world.rates(asked, [""] * 60)
    assert len(rates) >= 4
    for name, rate in rates.items():
        assert rows[name]["value"] == pytest.approx((rate + empty[name]) / 2)
        assert rows[name]["n"] <= 60
    assert rows["kl"]["value"] == 0.25 and rows["kl"]["standard_error"] == 0.0
    assert rows["finished"]["value"] == 0.5
    assert rows["length"]["value"] == pytest.approx(sum(len(one.split()) for one in said) / 120)


def test_win_rates_and_samples_side_by_side() -> None:
    prompts = [Prompt(messages=({"role": "user", "content": f"q{n}"},), columns={"answer": n}) for n in range(2)]
    scores = {"a": [[1.0, 2.0], [0.0, 0.0]], "b": [[2.0, 3.0], [0.0, 1.0]]}
    answers = {
        name: [answer(p, s, f"{name}{p}{s}", x) for p, pair in enumerate(of) for s, x in enumerate(pair)]
        for name, of in scores.items()
    }
    table = Table(build(EvaluateConfig, OPTIONS | {"shown": 1}, ""), prompts, Bootstrap(100), "gold")
    (row,) = table.win_rates(answers, "a")
    # b against a: (2>1, 2=2, 3>1, 3>2) and (0=0 twice, 1>0 twice)
    assert (row["model"], row["value"]) == ("b", ((1 + 0.5 + 1 + 1) / 4 + (0.5 + 0.5 + 1 + 1) / 4) / 2)
    (shown,) = table.side_by_side(answers)
    assert shown["answer"] == 0 and [one["text"] for one in shown["responses"]] == ["a00", "b00"]
    assert Table(table.config, prompts, Bootstrap(100), None).win_rates(answers, "a") == []
