"""The commands and options that findings recommend, in one place. Knows no finding."""

import json
import re
import shlex
from collections.abc import Sequence

_PLAIN = re.compile(r"[\w./-]+")
"""A path that YAML reads as it stands."""
IMPORT = "alignkit data import SOURCE OUT.jsonl --as KIND"
REJECTED = f"{IMPORT} (lists each with its reason); or data.on_invalid: skip"
DUPLICATES = "alignkit data dedup SOURCE OUT.jsonl --as KIND"
SHARED_PROMPTS = f"where each prompt is wanted once: {DUPLICATES} by=prompt"
OVERLAP = f"{DUPLICATES} AGAINST"
_SAYS = r'any(.[]; .tool_calls or ("\(.content)\(.reasoning // "")" | test("\\S")))'
EMPTY = {
    "comparisons": f"{IMPORT}; jq -c 'select(all(.responses[]; {_SAYS}))' OUT.jsonl",
    "feedback": f"{IMPORT}; jq -c 'select(.response | {_SAYS})' OUT.jsonl",
}
"""By kind; the others hold no empty answer."""
IDENTICAL = f"{IMPORT}; jq -c 'select((.responses | unique | length) == (.responses | length))' OUT.jsonl"
_RANKED_BY_SCORE = "[.ranks, .margins] | transpose | group_by(.[1]) | all(.[]; map(.[0]) | unique | length == 1)"
LEVEL = f"{IMPORT}; jq -c 'select(.margins == null or ({_RANKED_BY_SCORE}))' OUT.jsonl"
AGAINST_RANKS = "look at the rows, and at how they were made: swap the two responses, or correct the scores"
PERSONAL = "alignkit data clean SOURCE OUT.jsonl --as KIND personal.action=mask"
OVER_LONG = "data.max_length: {longest}; or data.over_long: skip, truncate_prompt_left or truncate_answer"
CONTRADICTIONS = "dpo.loss: robust with dpo.label_smoothing: {rate:.2f}; or settle the pairs by hand"
CONTRADICTIONS_AGAINST = "settle them by hand; where their prompts are shared, " + OVERLAP
SETTLED = "settle them by hand; how many labels are wrong cannot be told where rows are copied"
VERDICTS = "settle them by hand, or keep the majority's label"
LENGTH = "compare a reward model's accuracy with that rule's; dpo.tail_weight: 0.5; ppo.guard.length_correlation"
BALANCE = "kto.desirable_weight and kto.undesirable_weight: weight times count alike, within 1 : 1 and 4 : 3"
ARTEFACT = "balance both sides in it, or rewrite one; compare a reward model's accuracy with this one"
POSITION = "show the responses in an order drawn by chance to whoever ranks them"
TEMPLATE = "another model.chat_template; or model.on_unrendered: warn"
UNTRAINED = "sft.turns: last; or another model.chat_template"
CONTROL = "nothing: they are encoded as plain text; look whether the rows were exported with their template"
UNKNOWN = "a model whose tokenizer knows the script; where they are debris: alignkit data clean SOURCE OUT.jsonl"


def filled(mend: str, source: str, as_: str, against: Sequence[str]) -> str:
    """The recommendation with the names of what was checked."""
    others = ", ".join(one if _PLAIN.fullmatch(one) else json.dumps(one, ensure_ascii=False) for one in against)
    names = {"SOURCE": shlex.quote(source), "KIND": as_, "AGAINST": shlex.quote(f"against=[{others}]")}
    return re.sub(r"\b(?:SOURCE|KIND|AGAINST)\b", lambda found: names[found.group()], mend)
