"""Rollouts over several turns: sample, ask the environment, go on. It knows no reward and no loss.

Token in, token out: what the policy sampled is kept as ids and never rendered again. Where the environment answers,
the ids that the template prints between the turns follow, and the next turn is drawn from the whole context, its
draws keyed by the positions after those sampled before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from alignkit.chat import ChatFormat
from alignkit.chat.continuation import between, check_calls, check_replies
from alignkit.draws import Draws
from alignkit.environment.seam import Environment, build_environment
from alignkit.generate import completion_of, rollout, sample
from alignkit.keyed import later, row_keys
from alignkit.options.environment import EnvironmentOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt, ToolCall


@dataclass
class Episode:
    """One conversation as it grows."""

    prompt: Prompt
    context: list[int]
    """Every id so far, the prompt's first."""
    answer: list[int] = field(default_factory=list[int])
    """The ids of the policy's last turn."""
    ids: list[int] = field(default_factory=list[int])
    """Those of all its turns."""
    logps: list[float] | None = field(default_factory=list[float])
    """Their log-probabilities as sampled, nats; None where sampling knows none."""
    turns: list[Message] = field(default_factory=list[Message])
    """What stands between the prompt and its last turn."""
    inserted: list[tuple[int, tuple[int, ...]]] = field(default_factory=list[tuple[int, tuple[int, ...]]])
    over: bool = False
    cut: bool = False
    """Whether the environment's answer did not fit in."""

    def completion(self, format: ChatFormat) -> Completion:
        """What was said so far."""
        last = completion_of(self.prompt, self.answer, format)
        ended = last.finished and not self.cut
        update = {
            "response": _numbered(last.response, self.turns).model_copy(update={"finished": ended}),
            "ids": tuple(self.ids),
            "logps": None if self.logps is None else tuple(self.logps),
            "turns": tuple(self.turns),
            "inserted": tuple(self.inserted),
        }
        return last.model_copy(update=update)


class Episodes:
    """Plays episodes of one policy in one environment."""

    def __init__(self, format: ChatFormat, environment: Environment, options: EnvironmentOptions) -> None:
        """Raises InputError for a template under which no episode could go on."""
        self.format, self.environment, self.options = format, environment, options
        self.checked: set[tuple[str, bool]] = set()
        if options.kind == "tools":
            check_calls(format)
            self.check("tool", options.announce)

    def check(self, role: str, with_tools: bool) -> None:
        """Raise InputError where the template does not bear a reply of this role; looked at once."""
        if (role, with_tools) not in self.checked:
            check_replies(self.format, role, with_tools)
            self.checked.add((role, with_tools))

    def play(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        draws: Draws,
    ) -> list[Completion]:
        """`rollout` over turns: `draws.max_new_tokens` bounds what the policy samples in all of them.

        An episode ends where the environment says None, after max_turns of the policy's turns, at a turn that ends
        otherwise than the template ends one, and where there is no room left: neither for a further token of the
        policy, nor for what the environment has answered (`finished` is then false).
        """
        numbers = draws.numbers_of(prompts)
        most = draws.max_new_tokens
        contexts = self.format.prompts([(prompt.messages, prompt.tools) for prompt in prompts])
        jobs = [(p, s) for p in range(len(prompts)) for s in range(draws.samples)]
        episodes = [Episode(prompts[p], list(contexts[p])) for p, _ in jobs]
        keys = row_keys(draws.seed, draws.update, [numbers[p] for p, _ in jobs], [s for _, s in jobs])
        while live := [n for n, episode in enumerate(episodes) if not episode.over]:
            room = [most - len(episodes[n].ids) for n in live]
            answers = sample(
                policy,
                self.format,
                [episodes[n].context for n in live],
                later(keys[live], [len(episodes[n].ids) for n in live]),
                max_new_tokens=max(room),
                temperature=draws.temperature,
                token_budget=draws.token_budget,
            )
            for n, left, (answer, logps) in zip(live, room, answers, strict=True):
                episode = episodes[n]
                episode.logps = None if episode.logps is None or logps is None else [*episode.logps, *logps[:left]]
                self.go_on(episode, answer[:left], most)
        return [episode.completion(self.format) for episode in episodes]

    def go_on(self, episode: Episode, answer: list[int], max_new_tokens: int) -> None:
        """Take in a turn of the policy and what the environment says to it."""
        episode.answer, episode.ids, episode.context = answer, episode.ids + answer, episode.context + answer
        said = episode.completion(self.format)
        turns = 1 + sum(turn.role == "assistant" for turn in episode.turns)
        if not said.finished or turns == self.options.max_turns or len(episode.ids) == max_new_tokens:
            episode.over = True
            return
        replies = self.environment(said)
        if not replies:
            episode.over = True
            return
        for reply in replies:
            self.check(reply.role, bool(episode.prompt.tools))
        going = [*episode.turns, said.response, *replies]
        end, ids = between(self.format, episode.prompt.messages, going, episode.prompt.tools)
        episode.cut = sum(len(added) for _, added in episode.inserted) + len(ids) > self.options.max_tokens
        episode.over = episode.cut or answer[-1] != end
        if not episode.over:
            episode.turns, episode.context = going, episode.context + ids
            episode.inserted.append((len(episode.ids), tuple(ids)))


def open_episodes(options: EnvironmentOptions | None, format: ChatFormat, allow_code: bool) -> Episodes | None:
    """What plays the episodes of a model that is spoken to by `format`; None without an environment. Raises
    InputError."""
    return None if options is None else Episodes(format, build_environment(options, allow_code), options)


def answered(
    policy: Policy, format: ChatFormat, prompts: Sequence[Prompt], draws: Draws, episodes: Episodes | None
) -> list[Completion]:
    """Completions of one turn by `rollout` or, where there are `episodes`, of as many as they have."""
    if episodes is None:
        return rollout(policy, format, prompts, **vars(draws))
    return episodes.play(policy, prompts, draws)


def _numbered(message: Message, turns: Sequence[Message]) -> Message:
    """The message, its tool calls with ids, as templates want them to link calls and results."""
    if message.tool_calls is None:
        return message
    before = sum(len(turn.tool_calls or ()) for turn in turns)
    calls = tuple(
        ToolCall(name=call.name, arguments=call.arguments, id=f"call{before + n:05d}")
        for n, call in enumerate(message.tool_calls, 1)
    )
    return message.model_copy(update={"tool_calls": calls})
