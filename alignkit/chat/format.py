"""Conversations as tokens with weights, exactly as they will be served. It does not know data sets or stages."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignkit.chat.contract import Template
from alignkit.chat.files import RECORD, as_list, generation_config_of, record_of, sources, write_generation_config
from alignkit.chat.render import Rendering, Tools
from alignkit.chat.shape import probe
from alignkit.chat.tokens import Encoder, add_special_tokens, token_id
from alignkit.config import InputError, content_hash
from alignkit.records import Message
from alignkit.trie import TokenSequence


@dataclass(frozen=True, kw_only=True)
class ChatFormat(Rendering):
    """How one model is spoken to: its template, its special tokens, and the token contract over both.

    Every trained answer is one sequence: the context as the template will serve it, then the answer up to and
    including its end-of-turn token.
    """

    tokenizer: PreTrainedTokenizerBase
    end_id: int
    """The end-of-turn token of a plain answer."""
    stop_ids: tuple[int, ...]
    """Every token that ends generation, `end_id` first."""
    pad_id: int
    """An id to pad with. Never read back: padding is masked by length."""
    hash: str
    """Of the template, its keyword arguments and its special tokens."""
    new_ids: tuple[int, ...] = ()
    """Token ids that the tokenizer did not have before; the model needs rows for them (`extend_embeddings`)."""

    @classmethod
    def load(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        eos_token: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        generation_config: GenerationConfig | None = None,
        on_unrendered: Literal["error", "warn"] = "error",
    ) -> "ChatFormat":
        """Settle the format of a model. `template`: None = the tokenizer's own, "chatml", "none" (plain text: a
        prompt after BOS, an answer before EOS), or the path of a .jinja file. The tokenizer is changed in place: it
        gets the template and the missing special tokens. Raises InputError where no sound format results."""
        new_ids = add_special_tokens(tokenizer, ["<|im_start|>", "<|im_end|>"]) if template == "chatml" else ()
        if eos_token:
            token_id(tokenizer, eos_token, "model.eos_token")
            tokenizer.eos_token = eos_token
        source, tool_source = sources(tokenizer, template)
        saved = record_of(tokenizer)
        settled = Template(
            name=repr(template or tokenizer.name_or_path or "of the tokenizer"),
            source=source,
            tool_source=tool_source,
            tokens=tokenizer.special_tokens_map,
            kwargs=template_kwargs or saved.get("template_kwargs", {}),
        )
        tokens = [tokenizer.bos_token, tokenizer.eos_token]
        digest = content_hash([source, tool_source, settled.kwargs, tokens])
        if saved and saved["hash"] != digest:
            raise InputError(
                f"{tokenizer.name_or_path}/{RECORD}: the model was trained with another chat format than this (its "
                "template, template_kwargs or eos_token differ); leave these out of `model:` to use its own, or "
                "delete that file to train the model to a new format"
            )
        encoder = Encoder(tokenizer)
        generation = generation_config or generation_config_of(tokenizer)
        eos = as_list(generation.eos_token_id if generation else None)
        known = [tokenizer.decode([one]) for one in eos]
        fallback = eos_token or (known[0] if known else tokenizer.eos_token)
        shape = probe(settled, encoder.specials, fallback, known)
        ends = [token_id(tokenizer, end, "model.eos_token") for end in shape.ends]
        if encoder.encode(shape.ends) != [[end] for end in ends]:
            raise InputError(f"the end-of-turn tokens {shape.ends} are not single tokens; set model.eos_token")
        stops = ends if eos_token else [*ends, *eos, *as_list(tokenizer.eos_token_id)]
        pad = tokenizer.pad_token_id
        tokenizer.chat_template = source if source == tool_source else {"default": source, "tool_use": tool_source}
        return cls(
            tokenizer=tokenizer,
            template=settled,
            shape=shape,
            encoder=encoder,
            end_id=ends[0],
            stop_ids=tuple(dict.fromkeys(stops)),
            pad_id=ends[0] if pad is None else pad,
            hash=digest,
            new_ids=new_ids,
            on_unrendered=on_unrendered,
        )

    def stopping_at(self, tokens: Sequence[str]) -> "ChatFormat":
        """The same format, whose answers also end at these tokens. Raises InputError for what is no single token."""
        more: list[int] = []
        for token in tokens:
            ids: list[int] = self.tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:  # a tokenizer may begin a text with a space of its own
                (ids,) = self.encoder.encode([token], ["x"])
            if len(ids) != 1 or (ids[0] == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
                raise InputError(f"stop: {token!r} is not a single token of the model's tokenizer (its ids: {ids})")
            more += ids
        return replace(self, stop_ids=tuple(dict.fromkeys((*self.stop_ids, *more))))

    # -------------------------------------------------------------------------------------------- records to tokens

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Ids of the conversation with the generation prompt: what a model is given to answer. Raises InputError."""
        return self.prompts([(messages, tools)])[0]

    def prompts(self, conversations: Sequence[tuple[Sequence[Message], Tools]]) -> list[list[int]]:
        """`prompt` of many at once. An error's number is the conversation's place in the list, from 1."""
        texts: list[str] = []
        for number, (messages, tools) in enumerate(conversations, 1):
            with _numbered(number, len(conversations)):
                texts.append(self.asked(messages, tools))
        ids = self.encoder.encode(texts)
        for number, one in enumerate(ids, 1):
            with _numbered(number, len(ids)):
                self._check_context(one)
        return [list(one) for one in ids]

    def turns(
        self, messages: Sequence[Message], tools: Tools = None, which: Literal["all", "last"] = "all"
    ) -> list[TokenSequence]:
        """One sequence per trained assistant turn (`Message.weight` not 0), all of them or the last: weight 0 on the
        context, the message's weight on the answer with its end-of-turn token, which has weight 0 where the message
        is not finished. Raises InputError where none is trained."""
        return self.turns_of([(messages, tools)], which)[0]

    def turns_of(
        self, conversations: Sequence[tuple[Sequence[Message], Tools]], which: Literal["all", "last"] = "all"
    ) -> list[list[TokenSequence]]:
        """`turns` of many at once. An error's number is the conversation's place in the list, from 1."""
        texts: list[tuple[str, str]] = []
        places: list[tuple[int, Message]] = []
        for number, (messages, tools) in enumerate(conversations, 1):
            with _numbered(number, len(conversations)):
                chat = self.as_chat(messages)
                answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
                trained = [i for i in (answers if which == "all" else answers[-1:]) if messages[i].weight]
                if not trained:
                    raise InputError("no assistant message with a weight above 0: there is nothing to train on")
                for at in trained:
                    texts.append(self.turn(chat, at, tools))
                    places.append((number - 1, messages[at]))
        sequences: list[list[TokenSequence]] = [[] for _ in conversations]
        for (number, message), (context, answer) in zip(places, self._encode(texts), strict=True):
            with _numbered(number + 1, len(conversations)):
                self._check_context(context)
            weights = [0.0] * len(context) + _weights(answer, message.weight, message.finished)
            sequences[number].append(TokenSequence(context + answer, weights))
        return sequences

    def completion(
        self, prompt: Sequence[Message], continuation: Sequence[Message], tools: Tools = None
    ) -> TokenSequence:
        """One sequence for a prompt and what follows it, which ends in an assistant message: weight 1 on the answers
        of the continuation, each with its end-of-turn token where it is finished, weight 0 on all else. Raises
        InputError."""
        return self.completions([(prompt, continuation, tools)])[0]

    def completions(self, items: Sequence[tuple[Sequence[Message], Sequence[Message], Tools]]) -> list[TokenSequence]:
        """`completion` of many at once. Where the template prints an earlier answer of a continuation differently
        once the conversation goes on, that answer has weight 0 and is counted as unextended_turns."""
        texts: list[tuple[str, str]] = []
        finished: list[list[bool]] = []
        for number, (prompt, continuation, tools) in enumerate(items, 1):
            with _numbered(number, len(items)):
                if not continuation or continuation[-1].role != "assistant":
                    raise InputError("a response must end in an assistant message")
                messages = [*prompt, *continuation]
                chat = self.as_chat(messages)
                answers = [i for i in range(len(prompt), len(chat)) if chat[i]["role"] == "assistant"]
                texts += [self.turn(chat, at, tools) for at in answers]
                finished.append([messages[at].finished for at in answers])
        encoded = iter(self._encode(texts))
        sequences: list[TokenSequence] = []
        for number, ended in enumerate(finished, 1):
            turns = [next(encoded) for _ in ended]
            ids = turns[-1][0] + turns[-1][1]
            with _numbered(number, len(items)):
                self._check_context(turns[-1][0])
            weights = [0.0] * len(ids)
            for (context, answer), whole in zip(turns, ended, strict=True):
                start, end = len(context), len(context) + len(answer)
                if ids[:end] == context + answer:
                    weights[start:end] = _weights(answer, 1.0, whole)
                else:
                    self.counts["unextended_turns"] += 1
            sequences.append(TokenSequence(ids, weights))
        return sequences

    # -------------------------------------------------------------------------------------------- tokens to records

    def decode(self, ids: Sequence[int]) -> Message:
        """The assistant message that generated ids make up, read to the first token that ends generation: reasoning,
        tool calls (JSON between <tool_call> tags) and content, without special tokens."""
        end = next((i for i, one in enumerate(ids) if one in self.stop_ids), len(ids))
        return self.shape.parse(self.encoder.decode(ids[:end], self.shape.prompt), self.encoder.specials)

    def save(self, directory: str | Path, model: PreTrainedModel | None = None) -> None:
        """Write the tokenizer with its template, the record that the next stage checks, and a generation config that
        stops at this format's end-of-turn tokens and samples where it says how (the model's own is set too)."""
        folder = Path(directory)
        self.tokenizer.save_pretrained(folder)
        record = {
            "hash": self.hash,
            "template_kwargs": dict(self.template.kwargs),
            "end_id": self.end_id,
            "stop_ids": self.stop_ids,
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        found = model.generation_config if model is not None else generation_config_of(self.tokenizer)
        generation = found or GenerationConfig()
        generation.eos_token_id = list(self.stop_ids)
        generation.pad_token_id = self.pad_id
        generation.bos_token_id = self.tokenizer.bos_token_id
        write_generation_config(generation, folder)

    # ------------------------------------------------------------------------------------------------------ inside

    def _check_context(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("the prompt is empty")
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            raise InputError(f"the template {self.template.name} begins with two {self.tokenizer.bos_token} tokens")

    def _encode(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        before = [context for context, _ in texts]
        answers = self.encoder.encode([answer for _, answer in texts], before)
        self.counts["sequences"] += len(texts)
        self.counts["merged_boundaries"] += self.encoder.merged(texts)
        return list(zip(self.encoder.encode(before), answers, strict=True))


def _weights(answer: Sequence[int], weight: float, finished: bool) -> list[float]:
    """Of an answer's tokens, the last of which ends the turn: who was cut off did not choose it."""
    return [weight] * (len(answer) - 1) + [weight if finished else 0.0]


@contextmanager
def _numbered(number: int, of: int) -> Iterator[None]:
    """Say which of many conversations was wrong."""
    try:
        yield
    except InputError as error:
        raise InputError(f"conversation {number}: {error}" if of > 1 else str(error)) from error
