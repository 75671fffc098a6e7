"""What a judge's verdicts on pairs of a prompt's answers make: wins, a ranking, a pair. Knows no judge and no file."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

from alignkit.chunks import Row
from alignkit.options.sample import SampleConfig
from alignkit.records import Completion, Prompt
from alignkit.selection import Selection, candidate_of, comparison_of, dropped_counts, is_finished, mean_drawn, row_of
from reward_models.judge import Compare, text_of

Verdict: TypeAlias = tuple[int, int, float | None]
"""(i, j, verdict on answers i and j): 1 where i is better, 0 where j is, .5 for a tie, None where there is none."""


def judged(
    prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]], compare: Compare, keep_unfinished: bool
) -> list[Row]:
    """Each prompt's answers as a row of a chunk, with the verdicts on all pairs of its different finished ones."""
    pairs: list[tuple[int, int, int]] = []
    for number, answers in enumerate(drawn):
        said = [(*one.turns, one.response) if one.finished or keep_unfinished else () for one in answers]
        first = [place for place, one in enumerate(said) if one and said.index(one) == place]
        pairs += [(number, i, j) for i, j in combinations(first, 2)]
    texts = [[text_of((*one.turns, one.response)) for one in answers] for answers in drawn]
    found = compare([(prompts[n].messages, texts[n][i], texts[n][j]) for n, i, j in pairs])
    rows: list[Row] = [{"answers": [row_of(one) for one in answers], "verdicts": []} for answers in drawn]
    for (number, i, j), verdict in zip(pairs, found, strict=True):
        rows[number]["verdicts"].append((i, j, verdict))
    return rows


def decided(verdicts: Sequence[Verdict]) -> list[int]:
    """The answers that have a verdict on each of their pairs, once those are left out, one by one, that lack the most:
    of equal ones the last."""
    places = sorted({place for i, j, _ in verdicts for place in (i, j)})
    while True:
        lacking = [(i, j) for i, j, verdict in verdicts if verdict is None and i in places and j in places]
        if not lacking:
            return places
        unknown = Counter(place for pair in lacking for place in pair)
        places.remove(max(unknown, key=lambda place: (unknown[place], place)))


def wins(places: Sequence[int], verdicts: Sequence[Verdict]) -> dict[int, float]:
    """How many of the other answers each of `places` is better than, a tie being half a win (Copeland's score)."""
    won = dict.fromkeys(places, 0.0)
    for i, j, verdict in verdicts:
        if verdict is not None and i in won and j in won:
            won[i] += verdict
            won[j] += 1 - verdict
    return won


def wins_of(row: Row) -> dict[int, float]:
    """`wins` of the answers in a row, by their places, those left out that `decided` leaves out."""
    return wins(decided(row["verdicts"]), row["verdicts"])


def widest(won: dict[int, float], verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """(better, worse): of the pairs with a winner the one whose wins are farthest apart, the first of equal ones.

    Where not all wins are equal, the better one has more: whoever has the most has beaten one that has fewer.
    """
    pairs = [(i, j) if verdict else (j, i) for i, j, verdict in verdicts if verdict in (0, 1) and {i, j} <= won.keys()]
    return max(pairs, key=lambda pair: won[pair[0]] - won[pair[1]])


def select_judged(prompt: Prompt, row: Row, config: SampleConfig) -> Selection:
    """The comparison that one prompt's verdicts make, as config.write says; its margins are the answers' wins."""
    answers, verdicts = row["answers"], row["verdicts"]
    if not verdicts:
        finished = any(is_finished(one) or config.unfinished == "keep" for one in answers)
        return Selection((), (), "one_answer" if finished else "unfinished")
    won = wins_of(row)
    if len(won) < 2:
        return Selection((), (), "no_verdict")
    if len(set(won.values())) == 1:
        return Selection((), (), "tied")
    order = widest(won, verdicts) if config.write == "pair" else sorted(won, key=lambda place: (-won[place], place))
    chosen = [candidate_of(answers[n], won[n]) for n in order]
    return Selection((comparison_of(prompt, chosen),), tuple(chosen))


def measure_judged(rows: Sequence[Row]) -> dict[str, float]:
    """Of one chunk, for metrics.jsonl: shares of the pairs, and of the answers."""
    answers = [answer for row in rows for answer in row["answers"]]
    counts = pair_counts(rows)
    pairs = counts.pop("pairs")
    shares = {name.removeprefix("pairs/"): n / pairs for name, n in counts.items()} if pairs else {}
    return shares | mean_drawn(answers)


def pair_counts(rows: Sequence[Row]) -> dict[str, int]:
    """pairs = pairs/won + pairs/tied + pairs/no_verdict."""
    found = [verdict for row in rows for _, _, verdict in row["verdicts"]]
    tied, unknown = found.count(0.5), found.count(None)
    won = len(found) - tied - unknown
    return {"pairs": len(found), "pairs/won": won, "pairs/tied": tied, "pairs/no_verdict": unknown}


def summary_judged(rows: Sequence[Row], chosen: Sequence[Selection], skipped: int) -> dict[str, float]:
    """What was drawn, what the judge said, and what became of it: prompts = kept + all dropped/…"""
    answers = [answer for row in rows for answer in row["answers"]]
    places = [({place for i, j, _ in row["verdicts"] for place in (i, j)}, row["verdicts"]) for row in rows]
    return {
        "prompts": len(rows) + skipped,
        **dropped_counts(chosen, skipped),
        "answers": len(answers),
        "answers/unfinished": sum(not is_finished(answer) for answer in answers),
        "answers/no_verdict": sum(len(all_of_them) - len(decided(some)) for all_of_them, some in places),
        **pair_counts(rows),
    }
