"""The evaluate stage on tiny models; log-probabilities, KL and win rates against plain passes and plain counting."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.evaluation.answers import open_format
from alignkit.models import load_tokenizer
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Message, Scores
from alignkit.runs import Run
from alignkit.stages import evaluate
from alignkit.stages.evaluate import model_names

QUIET = RuntimeOptions(trackers=[], device="cpu")
PROMPTS = [f"say {n}" + "?" * (n % 3) for n in range(12)]


def letters(completions: list[Completion]) -> Scores:
    """How many of a … e stand in the response, and how many o."""
    texts = [completion.response.content for completion in completions]
    counts = tuple(float(sum(letter in "abcde" for letter in text)) for text in texts)
    return Scores(total=counts, parts={"o": tuple(float(text.count("o")) for text in texts)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluate")
    tiny.checkpoint(place / "one")
    tiny.checkpoint(place / "two" / "model", seed=1)
    rows = [{"messages": [{"role": "user", "content": text}], "answer": "a b"} for text in PROMPTS]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a" * (n + 1)}]}
        for n in range(4)
    ]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return place


def settings(folder: Path, **changes: Any) -> EvaluateConfig:
    options: dict[str, Any] = {
        "models": [str(folder / "one"), str(folder / "two" / "model")],
        "data": {"path": str(folder / "prompts.jsonl")},
        "chat_template": "none",
        "eos_token": tiny.END,
        "max_new_tokens": 8,
        "bootstrap": 200,
    }
    return build(EvaluateConfig, options | changes, "evaluate")


def start(directory: Path, config: EvaluateConfig, **changes: Any) -> dict[str, Any]:
    run = Run.open(directory, "evaluate", config, QUIET, "test")
    folder = evaluate.run(config, QUIET.model_copy(update=changes), run, {"reward": letters})
    assert run.record.status == "done" and directory / run.record.artifact == folder
    results = json.loads((folder / "results.json").read_text())
    results["table"] = {(row["model"], row["metric"]): row for row in results["rows"]}
    results["answers"] = {
        name: json.loads((folder / "answers" / f"{name}.json").read_text())["answers"] for name in results["models"]
    }
    results["side_by_side"] = json.loads((folder / "samples.json").read_text())
    return results


def plain_logp(model: Any, prompt: str, ids: list[int]) -> float:
    """log π(ids | prompt), nats, by one plain pass. The format "none" is the prompt's own tokens."""
    context = tiny.tokenizer()(prompt)["input_ids"]
    with torch.no_grad():
        logps = model(torch.tensor([context + ids])).logits[0].log_softmax(-1)
    return sum(logps[len(context) + t - 1, token].item() for t, token in enumerate(ids))


def test_numbers_are_those_of_plain_passes_and_plain_counting(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, samples=2, shown=3, metrics=["exact_match"])
    found = start(tmp_path / "evaluate", config)
    table, answers = found["table"], found["answers"]
    assert (found["models"], found["baseline"], found["reference"]) == (["one", "two"], "one", "one")
    models = {
        name: AutoModelForCausalLM.from_pretrained(path) for name, path in zip(answers, config.models, strict=True)
    }
    assert len(answers["two"]) == 24
    log_ratios = []
    for one in answers["two"]:
        prompt = PROMPTS[one["prompt"]]
        log_ratios.append(
            plain_logp(models["two"], prompt, one["ids"]) - plain_logp(models["one"], prompt, one["ids"])
        )
        assert one["kl"] == pytest.approx(log_ratios[-1], abs=1e-4)
    row = table["two", "kl"]
    by_prompt = torch.tensor(log_ratios).view(12, 2).mean(1)
    assert row["value"] == pytest.approx(by_prompt.mean().item(), abs=1e-4)
    assert row["standard_error"] == pytest.approx(by_prompt.std().item() / math.sqrt(12), abs=1e-4)
    assert table["one", "kl"]["value"] == 0.0
    wins = []
    for prompt in range(12):
        scores = {n: [o["scores"]["reward"] for o in answers[n] if o["prompt"] == prompt] for n in answers}
        wins += [0.5 * (a == b) + (a > b) for a in scores["two"] for b in scores["one"]]
    assert table["two", "win_rate"]["value"] == pytest.approx(sum(wins) / 48)
    assert ("one", "win_rate") not in table
    for name, several in answers.items():
        texts = [one["text"] for one in several]
        assert table[name, "reward"]["value"] == pytest.approx(sum(c in "abcde" for t in texts for c in t) / 24)
        assert table[name, "reward/o"]["value"] == pytest.approx("".join(texts).count("o") / 24)
        assert table[name, "length"]["value"] == pytest.approx(sum(len(one["ids"]) for one in several) / 24)
        assert table[name, "finished"]["value"] == sum(one["finished"] for one in several) / 24
    for row in found["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
    assert [len(sample["responses"]) for sample in found["side_by_side"]] == [2, 2, 2]
    assert found["side_by_side"][1]["prompt"][0]["content"] == PROMPTS[1]
    assert found["side_by_side"][1]["responses"][1]["text"] == answers["two"][2]["text"]


def test_kl_is_the_divergence_of_the_two_models(folder: Path, tmp_path: Path) -> None:
    """One token, so that the divergence can be summed exactly; the estimate is within four standard errors."""
    found = start(tmp_path, settings(folder, max_new_tokens=1, samples=100, temperature=0.7))
    exact = []
    models = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ("two/model", "one")]
    for prompt in PROMPTS:
        ids = torch.tensor([tiny.tokenizer()(prompt)["input_ids"]])
        with torch.no_grad():
            p, q = ((model(ids).logits[0, -1] / 0.7).log_softmax(-1) for model in models)
        exact.append((p.exp() * (p - q)).sum().item())
    row = found["table"]["two", "kl"]
    within = torch.tensor([one["kl"] for one in found["answers"]["two"]]).view(12, 100).std(1).mean().item()
    assert row["value"] == pytest.approx(sum(exact) / 12, abs=4 * within / math.sqrt(1200))


def test_perplexity_of_demonstrations(folder: Path, tmp_path: Path) -> None:
    found = start(tmp_path, settings(folder, texts={"path": str(folder / "texts.jsonl")}))
    model = AutoModelForCausalLM.from_pretrained(folder / "two" / "model")
    words = tiny.tokenizer()
    nats = 0.0
    for n in range(4):
        nats -= plain_logp(model, "hi", words("a" * (n + 1))["input_ids"] + [words.eos_token_id])
    table = found["table"]
    assert table["two", "nats_per_token"]["value"] == pytest.approx(nats / 14, rel=1e-5)
    assert table["two", "perplexity"]["value"] == pytest.approx(math.exp(nats / 14), rel=1e-5)
    assert table["two", "bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / 10, rel=1e-5)


def test_perplexity_of_documents_reads_their_beginnings(folder: Path, tmp_path: Path) -> None:
    """The tiny model knows 128 positions. Its tokenizer has no BOS, so that the first token is not predicted."""
    (folder / "documents.jsonl").write_text('{"text": "once"}\n' + json.dumps({"text": "ab" * 100}) + "\n")
    texts = {"path": str(folder / "documents.jsonl")}
    found = start(tmp_path, settings(folder, texts=texts, texts_are="documents", models=[str(folder / "one")]))
    model = AutoModelForCausalLM.from_pretrained(folder / "one")
    words = tiny.tokenizer()
    nats = -plain_logp(model, "o", words("nce")["input_ids"]) - plain_logp(
        model, "a", words("b" + "ab" * 63)["input_ids"]
    )
    assert found["table"]["one", "nats_per_token"]["value"] == pytest.approx(nats / 130, rel=1e-5)
    assert found["table"]["one", "bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / 130, rel=1e-5)


def test_greedy_answers_have_no_kl(folder: Path, tmp_path: Path) -> None:
    found = start(tmp_path, settings(folder, temperature=0.0))
    assert not any(metric == "kl" for _, metric in found["table"])


def test_models_with_other_tokens_have_no_kl(folder: Path, tmp_path: Path) -> None:
    other = tiny.checkpoint(folder / "other", tiny.LETTERS[::-1])
    found = start(tmp_path, settings(folder, models=[str(folder / "one"), str(other)]))
    assert ("one", "kl") in found["table"] and ("other", "kl") not in found["table"]
    assert ("other", "win_rate") in found["table"]


def test_results_depend_neither_on_the_token_budget_nor_on_an_interruption(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(folder)
    whole = start(tmp_path / "whole", config)
    split = start(tmp_path / "split", config, token_budget=40)
    for name in whole["answers"]:
        assert [one["ids"] for one in split["answers"][name]] == [one["ids"] for one in whole["answers"][name]]

    opened: list[str] = []

    def open_or_die(path: str, *rest: Any) -> Any:
        opened.append(path)
        if len(opened) == 2:
            raise KeyboardInterrupt
        return real(path, *rest)

    real = evaluate.open_speaker
    monkeypatch.setattr(evaluate, "open_speaker", open_or_die)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "cut", config)
    assert (tmp_path / "cut" / "results" / "answers" / "one.json").is_file()
    cut = start(tmp_path / "cut", config)
    assert opened[2:] == config.models  # the reference, and the model that was missing
    assert cut["rows"] == whole["rows"]


def test_prompts_without_room_for_an_answer_are_refused_or_left_out_for_all_models(
    folder: Path, tmp_path: Path
) -> None:
    """A token a letter; "wordy" is given two more tokens than "one" for each prompt."""
    wordy = tiny.checkpoint(tmp_path / "wordy")
    words = tiny.tokenizer()
    words.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ '~' if m.role == 'assistant' else '..' }}{% endfor %}"
    )
    words.save_pretrained(wordy)
    data = {"path": str(folder / "prompts.jsonl"), "max_length": 16}  # 8 tokens of answer leave 8
    config = settings(folder, models=[str(folder / "one"), str(wordy)], data=data)
    fits = [text for text in PROMPTS if len(text) + 2 <= 8]
    assert 0 < len(fits) < len(PROMPTS) and max(map(len, PROMPTS)) == 8
    with pytest.raises(InputError, match=rf"data\.max_length 16: {12 - len(fits)} of 12 prompts leave no room"):
        start(tmp_path / "refused", config)
    skipping = settings(folder, models=config.models, data=data | {"over_long": "skip"}, shown=12)
    found = start(tmp_path / "skipped", skipping)
    assert [shown["prompt"][0]["content"] for shown in found["side_by_side"]] == fits
    assert found["prompts"] == len(fits) == len(found["answers"]["one"]) == len(found["answers"]["wordy"])
    counted = json.loads((tmp_path / "skipped" / "metrics.jsonl").read_text().splitlines()[0])
    assert (counted["data/prompts"], counted["data/skipped"]) == (len(fits), 12 - len(fits))
    with pytest.raises(InputError, match=r"data\.max_length 9: 12 of 12 prompts .* Raise data\.max_length$"):
        start(tmp_path / "none", settings(folder, data=data | {"over_long": "skip", "max_length": 9}))


def test_a_token_budget_below_a_prompt_and_its_answer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runtime\.token_budget: 15 is less than a prompt and its completion, 16"):
        start(tmp_path / "small", settings(folder), token_budget=15)
    start(tmp_path / "enough", settings(folder), token_budget=16)
    texts = {"path": str(folder / "texts.jsonl"), "max_length": 30}
    with pytest.raises(InputError, match=r"texts: .*long\.jsonl:1: runtime\.token_budget: 16 is less than"):
        (folder / "long.jsonl").write_text(json.dumps({"prompt": "hi", "completion": "a" * 25}) + "\n")
        config = settings(folder, texts=texts | {"path": str(folder / "long.jsonl")})
        start(tmp_path / "texts", config, token_budget=16)


def test_bits_per_byte_count_all_that_an_answer_spells(folder: Path, tmp_path: Path) -> None:
    """Reasoning is predicted and its bytes count; a weight scales neither, and an answer of weight 0 is left out."""
    thinker = tiny.checkpoint(tmp_path / "thinker", seed=2)
    words = tiny.tokenizer()
    words.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.reasoning_content + '. ' if m.reasoning_content }}"
        "{{ m.content }}~{% else %}{{ m.content }}?{% endif %}{% endfor %}"
    )
    words.save_pretrained(thinker)
    ask = {"role": "user", "content": "hi"}
    thought = {"role": "assistant", "content": "ab", "reasoning": "hm", "weight": 0.5}
    plain = {"role": "assistant", "content": "abc"}
    rows = [[ask, thought], [ask, plain], [ask, plain, ask, plain | {"weight": 0}]]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    found = start(tmp_path / "run", settings(folder, models=[str(thinker)], texts={"path": str(texts)}))
    model = AutoModelForCausalLM.from_pretrained(thinker)
    nats = -sum(plain_logp(model, "hi?", words(spelled)["input_ids"]) for spelled in ("hm. ab~", "abc~"))
    row = found["table"]["thinker", "nats_per_token"]
    assert row["value"] == pytest.approx(nats / (7 + 4), rel=1e-5)
    assert found["table"]["thinker", "bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / (6 + 3), rel=1e-5)


def test_template_kwargs_are_for_models_that_no_stage_has_made(folder: Path, tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    words = tiny.tokenizer()
    words.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ '~' if m.role == 'assistant' else sign }}{% endfor %}"
    )
    words.save_pretrained(base)
    config = settings(folder, template_kwargs={"sign": "!"})
    ask = (Message(role="user", content="hi"),)
    assert words.decode(open_format(str(base), config).prompt(ask)) == "hi!"
    made = ChatFormat.load(load_tokenizer(str(base)), template_kwargs={"sign": "?"})
    made.save(base)
    assert words.decode(open_format(str(base), config).prompt(ask)) == "hi?"


def test_a_missing_answer_column_is_named(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, metrics=["squad"], answer_column="solution")
    with pytest.raises(
        InputError, match=r"\.jsonl:1: answer_column: a prompt has no column 'solution', which the metric squad needs"
    ):
        start(tmp_path, config)


def test_wrong_options_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="baseline: '@dpo' is not one of models"):
        settings(folder, models=["@sft"], baseline="@dpo")
    with pytest.raises(InputError, match="stands there twice"):
        settings(folder, models=["@sft", "@sft"])


def test_names_of_models() -> None:
    assert model_names(["@sft", "runs/hh/dpo/model", "/a/sft", "org/Base-1B"]) == ["sft", "dpo", "sft-2", "Base-1B"]
    assert model_names(["@dpo-strict", "@dpo"]) == ["dpo-strict", "dpo"]
    assert model_names(["@sft-2", "@sft", "/a/sft"]) == ["sft-2", "sft", "sft-3"]
