"""Personal data is counted, and never shown."""

import pytest
from records import demonstration, found

from alignkit.data.checking.privacy import Personal, can_look, masked

pytestmark = pytest.mark.skipif(not can_look(), reason="needs alignkit[data]")
MAIL, PHONE = "mary.jones@gmail.com", "+49 30 901820"


def test_records_and_kinds_are_counted_and_masked() -> None:
    told = found(
        Personal(),
        demonstration("who?", f"Write to {MAIL} or {MAIL}, or call {PHONE}."),
        demonstration("who?", "Nobody."),
        demonstration(f"Is {MAIL} right?", "Yes."),
    )["personal_data"]
    assert told.numbers == {"records": 2, "of": 3, "kinds": {"email": 3, "telephone": 1}}
    shown = " ".join(text for sample in told.samples for text in sample.texts)
    assert "Write to [EMAIL] or [EMAIL], or call [TELEPHONE]" in shown
    assert MAIL not in shown
    assert PHONE not in shown


def test_telephone_numbers_without_a_country_code_are_found_as_clean_finds_them() -> None:
    told = found(Personal(), demonstration("who?", "Call (212) 456-7890 or 650-253-0000 today."))["personal_data"]
    assert told.numbers["kinds"] == {"telephone": 2}
    assert masked("Call 650-253-0000 today.") == "Call [TELEPHONE] today."


def test_a_mark_stands_where_it_was() -> None:
    assert masked(f"a {MAIL} b") == "a [EMAIL] b"
