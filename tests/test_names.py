"""Every answer to another toolkit's option names an option that exists here."""

import re

from alignkit.config import dotted_fields
from alignkit.names import FOREIGN_NAMES
from alignkit.options import STAGES
from alignkit.options.shared import RuntimeOptions


def test_answers_name_options_that_exist() -> None:
    known = {dotted for stage in STAGES.values() for dotted in dotted_fields(stage)}
    known |= {f"runtime.{name}" for name in RuntimeOptions.model_fields}
    for foreign, answer in FOREIGN_NAMES.items():
        for named in re.findall(r"`([a-z_.0-9]+)", answer):
            assert named in known or named in STAGES, f"{foreign}: {answer}"


def test_no_name_that_is_ours_is_called_foreign() -> None:
    ours = {name for stage in STAGES.values() for name in stage.model_fields}
    assert not ours & FOREIGN_NAMES.keys()
