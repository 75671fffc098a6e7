"""Holds every chat template of the installed trl to the token contract, and writes docs/templates.md."""

import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.records import Message, ToolCall
from alignkit.trie import TokenSequence

PAGE = Path(__file__).resolve().parents[1] / "docs" / "templates.md"
TEMPLATES = sorted((Path(str(files("trl"))) / "chat_templates").glob("*.jinja"))
_SPECIAL = re.compile(
    r"<\|\w+\|?>|<\w+\|>|<｜[^｜<>]+｜>|</?s>|<(?:start_of_turn|end_of_turn|end_of_utterance|sop)>|\[gMASK\]"
)

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather of a town",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "where"}},
                "required": ["town"],
            },
        },
    },
)
CALL = ToolCall(name="get_weather", arguments={"town": "Bergen"}, id="call00001")
USER, AGAIN = Message(role="user", content="How is it outside?"), Message(role="user", content="And tomorrow?")
CONVERSATIONS: dict[str, tuple[tuple[Message, ...], tuple[dict, ...] | None]] = {
    "plain": (
        (USER, Message(role="assistant", content="It rains."), AGAIN, Message(role="assistant", content="Sunny.")),
        None,
    ),
    "system": (
        (Message(role="system", content="Be brief."), USER, Message(role="assistant", content="It rains.")),
        None,
    ),
    "reasoning": (
        (
            USER,
            Message(role="assistant", content="It rains.", reasoning="Clouds are grey."),
            AGAIN,
            Message(role="assistant", content="Sunny.", reasoning="The wind turned."),
        ),
        None,
    ),
    "tools": (
        (
            USER,
            Message(role="assistant", tool_calls=(CALL,)),
            Message(role="tool", content="wet 7", name="get_weather", tool_call_id="call00001"),
            Message(role="assistant", content="It rains."),
        ),
        TOOLS,
    ),
}


def byte_tokenizer(specials: list[str], **roles: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges and the given special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["how is it outside and tomorrow it rains\n\n sunny be brief the wind turned"] * 9, trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def tokenizer_for(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer that has the special tokens which a template writes."""
    specials = sorted({"<s>", "</s>", *_SPECIAL.findall(source)})
    tokenizer = byte_tokenizer(specials, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = source
    return tokenizer


def cell(template: Path, kind: str) -> tuple[ChatFormat | None, list[TokenSequence], str]:
    """One cell: the format and the trained turns, or the reason of the refusal."""
    tokenizer = tokenizer_for(template.read_text(encoding="utf-8"))
    try:
        format = ChatFormat.load(tokenizer)
        return format, format.turns(*CONVERSATIONS[kind]), ""
    except InputError as error:
        return None, [], str(error).replace("'of the tokenizer' ", "").split("; ")[0]


def page() -> str:
    """docs/templates.md."""
    rows = []
    for template in TEMPLATES:
        cells, end = [], ""
        for kind in CONVERSATIONS:
            format, _, refusal = cell(template, kind)
            note = " (without thinking)" if format and format.counts["thinking_off"] else ""
            cells.append(f"refused: {refusal}".replace("|", "\\|") if refusal else f"passes{note}")
            end = end or (", ".join(f"`{one}`" for one in format.shape.ends).replace("|", "\\|") if format else "")
        rows.append(f"| {template.stem} | {end} | {' | '.join(cells)} |")
    kinds = list(CONVERSATIONS)
    return "\n".join(
        [
            "# Chat templates under the token contract",
            "",
            f"Every chat template in trl {version('trl')}, held to the token contract of `alignkit/chat` on a",
            "two-turn conversation, one with a system message, one with reasoning, and one with a tool call. Each",
            "cell passes, or is refused before anything is trained, with its reason. *Without thinking*: a turn",
            "without reasoning is rendered with `enable_thinking=False`, since the template otherwise begins each",
            "answer with an open `<think>`; set it in `template_kwargs` so that prompts are written that way too.",
            "With `model.on_unrendered: warn` what a template leaves out is counted instead of refused, as it always",
            "is where a reward model scores what a policy sampled.",
            "Written by `python tests/template_table.py`, compared by `tests/test_chat.py`.",
            "",
            f"| template | end of turn | {' | '.join(kinds)} |",
            "|---" * (len(kinds) + 2) + "|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
