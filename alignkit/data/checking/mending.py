"""The commands and options that findings recommend, in one place. Knows no finding."""

import shlex
from collections.abc import Sequence

REJECTED = "alignkit data import SOURCE OUT --as KIND (lists each with its reason); or data.on_invalid: skip"
DUPLICATES = "alignkit data dedup SOURCE OUT"
OVERLAP = "alignkit data dedup SOURCE OUT against=[AGAINST]"
CLEAN = "alignkit data clean SOURCE OUT"
PERSONAL = "alignkit data clean SOURCE OUT personal.action=mask"
OVER_LONG = "data.max_length: {longest}; or data.over_long: skip, truncate_prompt_left or truncate_answer"
SHARED_PROMPTS = "nothing: data.validation holds such records out together; where one is enough, " + DUPLICATES
CONTRADICTIONS = "dpo.loss: robust with dpo.label_smoothing: {rate:.2f}; or settle the pairs by hand"
TIES = "leave them out, or, where a row holds more than two responses, give them equal ranks"
SCORES = "look at the rows: swap the two responses, or correct the scores"
LENGTH = "read a reward model's accuracy beside that floor; dpo.tail_weight: 0.5; ppo.guard.length_correlation"
BALANCE = "kto.desirable_weight and kto.undesirable_weight: weight times count alike, within 1 : 1 and 4 : 3"
ARTEFACT = "balance chosen and rejected answers in it, or rewrite one side; compare with it what a reward model learns"
POSITION = "shuffle the responses of each row, with their ranks, before a judge or a person sees them"
TEMPLATE = "another model.chat_template; or model.on_unrendered: warn"
UNTRAINED = "sft.turns: last; or another model.chat_template"
UNKNOWN = "a model whose tokenizer knows the script; alignkit data clean SOURCE OUT where it is debris"


def filled(mend: str, source: str, as_: str, against: Sequence[str]) -> str:
    """The recommendation with the names of what was checked."""
    names = {"SOURCE": shlex.quote(source), "KIND": as_, "AGAINST": ",".join(against)}
    for name, value in names.items():
        mend = mend.replace(name, value)
    return mend
