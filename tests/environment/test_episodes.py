"""Episodes: every id is the one drawn or inserted, whatever they are played beside, and they end when told."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.draws import Draws
from alignkit.environment.episodes import Episodes
from alignkit.environment.seam import Environment
from alignkit.experience import spoken
from alignkit.keyed import draw, row_keys, uniforms
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.shared import ModelOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt

TEMPLATE = """{%- for m in messages -%}
    {{- m.role[0] + ' ' + m.content -}}{{- eos_token + '.' if m.role == 'assistant' else '. ' -}}
{%- endfor -%}{%- if add_generation_prompt -%}{{- 'a ' -}}{%- endif -%}"""
TEXTS = ["a", "what is it?", "tell me of 12 big bears.", "go!", "is there a way?"]
SAME: dict[str, Any] = {"seed": 3, "update": 7, "samples": 3, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"), spread=0.4)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(ModelOptions(path=str(folder)), trainable=False)


@pytest.fixture(scope="module")
def format(folder: Path) -> ChatFormat:
    (folder / "chat.jinja").write_text(TEMPLATE)
    return ChatFormat.load(load_tokenizer(str(folder)), str(folder / "chat.jinja"), eos_token=tiny.END)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def echo(completion: Completion) -> list[Message] | None:
    """Answers with the end of what was said, in one message or two, but not to what ends in a digit."""
    text = completion.response.content
    if text[-1:].isdigit():
        return None
    return [user("you said " + text[-3:].strip())] + [user("why?")] * (len(text) % 2)


def played(policy: Policy, format: ChatFormat, environment: Environment, texts: list[str], **more: Any) -> list[Any]:
    """Episodes without their log-probabilities, whose rounding depends on what they are played beside."""
    given = {"kind": "function", "path": "a:b"} | more.pop("options", {})
    prompts = [Prompt(messages=(user(text),), columns={"text": text}) for text in texts]
    episodes = Episodes(format, environment, EnvironmentOptions(**given))
    completions = episodes.play(policy, prompts, Draws(**{**SAME, **more}))
    return [completion.model_copy(update={"logps": None}) for completion in completions]


@pytest.fixture(scope="module")
def whole(policy: Policy, format: ChatFormat) -> list[Completion]:
    return played(policy, format, echo, TEXTS)


def by_hand(completion: Completion, letters: dict[str, int]) -> list[int]:
    """The ids of the conversation, written down character by character."""
    turns = [*completion.prompt, *completion.turns, completion.response]
    text = ""
    for turn in turns:
        text += f"{turn.role[0]} {turn.content}" + (f"{tiny.END}." if turn.role == "assistant" else ". ")
    return [letters[letter] for letter in text.removesuffix("." if completion.finished else tiny.END + ".")]


def test_the_ids_are_those_of_the_conversation_written_by_hand(whole: list[Completion], format: ChatFormat) -> None:
    letters = format.tokenizer.get_vocab()
    assert {len(completion.inserted) for completion in whole} >= {0, 1, 2}
    for completion in whole:
        context = format.prompt(completion.prompt)
        ids, weights = spoken(context, completion)
        assert ids == by_hand(completion, letters)
        assert [one for one, weight in zip(ids, weights, strict=True) if weight] == list(completion.ids)
        said = "".join(format.tokenizer.convert_ids_to_tokens(list(completion.ids)))
        answers = [turn.content for turn in (*completion.turns, completion.response) if turn.role == "assistant"]
        assert said.removesuffix(tiny.END) == tiny.END.join(answers)


def test_every_token_is_the_draw_of_its_position(whole: list[Completion], folder: Path, format: ChatFormat) -> None:
    """An untouched model reads the whole conversation at once; its probabilities and the number of (seed, update,
    prompt, sample, position) give every sampled token, and none that was inserted is looked at."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    keys = row_keys(3, 7, [n // 3 for n in range(len(whole))], [n % 3 for n in range(len(whole))])
    for completion, key in zip(whole, keys, strict=True):
        ids, weights = spoken(format.prompt(completion.prompt), completion)
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0]
        places = [place for place, weight in enumerate(weights) if weight]
        for position, place in enumerate(places):
            drawn, _ = draw(logits[place - 1][None], uniforms(key[None], position))
            assert int(drawn) == ids[place], (position, place)


def test_what_they_are_played_beside_does_not_matter(
    whole: list[Completion], policy: Policy, format: ChatFormat
) -> None:
    assert played(policy, format, echo, TEXTS, token_budget=90) == whole
    backwards = played(policy, format, echo, TEXTS[::-1], numbers=range(4, -1, -1))
    assert [backwards[3 * n : 3 * n + 3] for n in range(4, -1, -1)] == [whole[3 * n : 3 * n + 3] for n in range(5)]
    assert played(policy, format, echo, TEXTS[1::2], numbers=[1, 3]) == whole[3:6] + whole[9:12]
    assert played(policy, format, echo, TEXTS, update=8) != whole
    assert played(policy, format, echo, []) == []


def test_they_end(policy: Policy, format: ChatFormat) -> None:
    common = {"samples": 40, "max_new_tokens": 30}
    asked: list[Completion] = []

    def goes_on(completion: Completion) -> list[Message]:
        asked.append(completion)
        return [user("go on")]

    found = played(policy, format, goes_on, TEXTS, **common, options={"max_turns": 3})
    turns = [1 + len(completion.inserted) for completion in found]
    assert max(turns) == 3 and {completion.finished for completion in found} == {True, False}
    for completion, count in zip(found, turns, strict=True):
        assert completion.ids.count(format.end_id) == count - (not completion.finished)
        assert len(completion.ids) == 30 or (completion.finished and count == 3)
        assert len(completion.ids) <= 30 and completion.columns["text"] == completion.prompt[0].content
    assert all(len(c.ids) < 30 and c.finished and len(c.inserted) < 2 for c in asked)
    # what is inserted is ".u go on. a ", 12 tokens: once fits in, twice does not
    short = played(policy, format, goes_on, TEXTS, **common, options={"max_turns": 3, "max_tokens": 23})
    for one, other, count in zip(short, found, turns, strict=True):
        assert len(one.inserted) == min(count, 2) - 1
        assert (one == other) == (count < 3), "an episode is whole, or cut off before what did not fit"
        assert count < 3 or (not one.finished and one.ids == other.ids[: len(one.ids)])
    silent = played(policy, format, lambda _: None, TEXTS, **common)
    assert not any(completion.turns for completion in silent)
    assert [one.ids for one in silent] == [two.ids[: len(one.ids)] for one, two in zip(silent, found, strict=True)]
    assert played(policy, format, lambda _: [], TEXTS, **common) == silent


def test_greedy_episodes_are_those_of_generate(policy: Policy, format: ChatFormat, folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    found = played(policy, format, echo, TEXTS, samples=1, temperature=0.0)
    for completion in found:
        ids, weights = spoken(format.prompt(completion.prompt), completion)
        start = weights.index(1.0)
        for stop in [len(ids) if 0.0 not in weights[start:] else weights.index(0.0, start)]:
            answer = plain.generate(torch.tensor([ids[:start]]), max_new_tokens=stop - start, do_sample=False)
            assert answer[0].tolist() == ids[:stop]


def test_a_turn_that_ends_otherwise_ends_the_episode(policy: Policy, format: ChatFormat) -> None:
    """The template would print another token in its place."""
    letters = format.tokenizer.get_vocab()
    other = format.stopping_at(["e"])
    found = played(policy, other, lambda _: [user("go on")], TEXTS, samples=20)
    ended = [completion for completion in found if completion.finished and completion.ids[-1] == letters["e"]]
    assert ended
    for completion in found:
        assert letters["e"] not in completion.ids[:-1]


def test_a_reply_that_the_template_does_not_bear_is_refused(policy: Policy, format: ChatFormat, folder: Path) -> None:
    source = TEMPLATE.replace("m.content", "(m.content if loop.last or m.role == 'user' else '')")
    (folder / "forgets.jinja").write_text(source)
    forgets = ChatFormat.load(load_tokenizer(str(folder)), str(folder / "forgets.jinja"), eos_token=tiny.END)
    with pytest.raises(InputError, match="prints an answer differently once it is replied to"):
        played(policy, forgets, echo, TEXTS)
    with pytest.raises(InputError, match="reads calls that are JSON between <tool_call> tags"):
        Episodes(format, echo, EnvironmentOptions(kind="tools", tools=["calculator"]))
