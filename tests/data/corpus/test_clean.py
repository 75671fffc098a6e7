"""Cleaning against hand-made rows: what changes, what goes and why, and that every row is accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.options.corpus import CleanOptions

pytest.importorskip("datatrove", reason="the extra `data` is not installed")
from alignkit.data.corpus.clean import clean
from alignkit.data.corpus.gather import Outcome

SENTENCE = "The farmer said that the horses and the cows have to be with the others before it rains. "
LONG = "".join(
    f"{SENTENCE.replace('farmer', name)}\n" for name in ("baker", "miller", "tailor", "weaver", "mason", "cook")
)
PAGE = f"""<!DOCTYPE html><html><head><title>t</title></head><body>
<nav><a href="/">Home</a> <a href="/b">Shop</a></nav>
<article><h1>Rain</h1><p>{SENTENCE}</p><p>{SENTENCE.replace("farmer", "smith")}</p></article>
<footer>All rights reserved. Cookies.</footer></body></html>"""


def cleaned(folder: Path, *rows: Any, as_: str | None = None, **options: Any) -> tuple[Outcome, list[Any], list[Any]]:
    """The account, the rows kept and the rows removed; whatever was done, the sums agree."""
    source, out = folder / "in.jsonl", folder / "out" / "kept.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = build(CleanOptions, {"work": {"workers": 1}, **options}, "")
    done = clean(str(source), out, as_, "auto", chosen, lambda what, count: None)
    assert done is not None
    kept, removed = (
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for path in (out, out.with_name("kept.removed.jsonl"))
    )
    assert (done.rows, done.records) == (len(rows), len(kept) + len(removed))
    assert (done.kept, done.removed) == (len(kept), len(removed))
    assert Outcome.model_validate_json((out.parent / "kept.report.json").read_text()) == done
    assert not [path.name for path in out.parent.iterdir() if path.name.startswith(".")]
    return done, kept, removed


def test_texts_are_repaired_and_what_is_sound_stays_as_it_is(tmp_path: Path) -> None:
    sound = {"text": "Grüße — “fine”, naïve \t x² ﬁ\n", "id": "a"}
    broken = [{"text": "schÃ¶n"}, {"text": "a\u0000b\u0007c"}, {"text": "&lt;b&gt; and &amp;"}]
    done, kept, removed = cleaned(tmp_path, sound, *broken, as_="corpus")
    assert kept == [sound, {"text": "schön"}, {"text": "abc"}, {"text": "<b> and &"}]
    assert (done.changed, removed) == ({"unicode": 3}, [])


def test_what_a_conversation_says_of_html_stays_as_it_is(tmp_path: Path) -> None:
    row = {"prompt": "How do I write a tag?", "completion": "Write &lt;b&gt; for it."}
    _, kept, _ = cleaned(tmp_path, row, as_="demonstrations")
    assert kept[0]["messages"][1]["content"] == row["completion"]


def test_a_page_keeps_its_main_text_only(tmp_path: Path) -> None:
    code = {"text": "Write <div>x</div> in HTML."}
    done, kept, removed = cleaned(tmp_path, {"text": PAGE}, code, {"text": "<html><body></body></html>"}, as_="corpus")
    assert "the smith said" in kept[0]["text"].lower() and "Rain" in kept[0]["text"]
    assert not {"Home", "Shop", "Cookies", "<p>"} & set(kept[0]["text"].replace(".", " ").split())
    assert kept[1] == code
    assert removed[0]["tags"] == [{"step": "html", "reason": "no main text", "found": ""}]
    assert done.changed == {"html": 1}
    _, kept, _ = cleaned(tmp_path, {"text": PAGE}, as_="corpus", html="never", unicode=False)
    assert kept == [{"text": PAGE}]


def test_personal_data_is_masked_everywhere_or_removes_its_record(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "I am ann@mail.org"}, {"role": "assistant", "content": "Hello ann@mail.org"}]
    row = {"messages": turns, "columns": {"note": "see ann@mail.org", "name": "ann@mail.org", "n": 3}}
    done, kept, _ = cleaned(tmp_path, row, {"prompt": "p", "completion": "c"}, as_="demonstrations")
    assert "ann@mail.org" not in json.dumps(kept)
    assert kept[0]["columns"]["n"] == 3 and kept[0]["messages"][0]["role"] == "user"
    assert (done.masked, done.changed) == ({"email": 4}, {"personal": 1})
    done, kept, removed = cleaned(tmp_path, row, as_="demonstrations", personal={"action": "remove"})
    assert (kept, removed[0]["tags"][0]["reason"], done.masked) == ([], "email", {})
    hidden = {"prompt": "q", "completion": "a", "columns": {"id": "ann@mail.org"}}
    assert cleaned(tmp_path, hidden, as_="demonstrations", personal={"action": "remove"})[0].removed == 1
    _, kept, _ = cleaned(tmp_path, row, as_="demonstrations", personal={"action": "keep"})
    assert "ann@mail.org" in json.dumps(kept)


def test_rules_for_web_text_remove_with_their_reasons(tmp_path: Path) -> None:
    rows = [
        {"text": LONG},
        {"text": "Too short"},
        {"text": LONG.replace("rains", "{rains}")},
        {"text": LONG + "menu\n"},
    ]
    done, kept, removed = cleaned(tmp_path, *rows, as_="corpus", quality=["gopher", "c4"])
    reasons = [{(tag["step"], tag["reason"]) for tag in row["tags"]} for row in removed]
    assert reasons == [{("gopher", "gopher_short_doc"), ("c4", "too_few_sentences")}, {("c4", "curly_bracket")}]
    assert [row["line"] for row in removed] == [2, 3]
    assert [row["text"].count("\n") for row in kept] == [5, 5]  # C4 cuts lines without a full stop
    assert "menu" not in kept[1]["text"]
    counts = {(tag.step, tag.reason): tag.records for tag in done.tags}
    assert counts == {("gopher", "gopher_short_doc"): 1, ("c4", "too_few_sentences"): 1, ("c4", "curly_bracket"): 1}
    assert all(tag.samples[0]["line"] in (2, 3) for tag in done.tags)
    _, kept, _ = cleaned(
        tmp_path,
        rows[1],
        as_="corpus",
        quality=["gopher"],
        thresholds={"gopher": {"min_doc_words": 1, "min_stop_words": 0}},
    )
    assert kept == [rows[1]]


def test_rules_judge_a_conversation_but_cut_nothing_out_of_it(tmp_path: Path) -> None:
    row = {"prompt": LONG, "completion": LONG + "no stop here\n"}
    _, kept, _ = cleaned(tmp_path, row, as_="demonstrations", quality=["c4"])
    assert kept[0]["messages"][1]["content"] == row["completion"]


def test_a_record_that_cleaning_leaves_empty_is_removed(tmp_path: Path) -> None:
    _, kept, removed = cleaned(tmp_path, {"prompt": "\u0007", "completion": "x"}, as_="demonstrations")
    assert kept == []
    assert removed[0]["tags"][0]["step"] == "left over" and "empty prompt" in removed[0]["tags"][0]["reason"]


def test_languages_are_kept_by_a_model_at_hand(tmp_path: Path) -> None:
    fasttext = pytest.importorskip("fasttext")
    english, german = "the man and the dog {} are in the house", "der mann und der hund {} sind im haus"
    lines = [f"__label__en {english.format(n)}\n__label__de {german.format(n)}\n" for n in range(50)]
    (tmp_path / "train.txt").write_text("".join(lines))
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), wordNgrams=2, dim=8, epoch=60, thread=1, verbose=0)
    model.save_model(str(tmp_path / "two.bin"))
    rows = [{"text": "the dog and the man are there"}, {"text": "der hund und der mann sind da"}]
    language = {"model": str(tmp_path / "two.bin"), "keep": ["de"]}
    _, kept, removed = cleaned(tmp_path, *rows, as_="corpus", language=language)
    assert (kept, removed[0]["tags"][0]["step"]) == ([rows[1]], "language")
    with pytest.raises(InputError, match=r"language\.keep: the model two\.bin does not know 'fr', but de, en"):
        cleaned(tmp_path, *rows, as_="corpus", language={**language, "keep": ["fr"]})
    with pytest.raises(InputError, match=r"no\.bin\. Fetch lid\.176\.bin"):
        cleaned(tmp_path, *rows, as_="corpus", language={"model": str(tmp_path / "no.bin")})
    with pytest.raises(InputError, match="no fastText model"):
        cleaned(tmp_path, *rows, as_="corpus", language={"model": str(tmp_path / "train.txt")})


def test_wrong_options_are_named(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c"}
    for options, said in (
        (
            {"quality": ["gopher"], "thresholds": {"gopher": {"min_words": 1}}},
            "thresholds.gopher.min_words: unknown key",
        ),
        ({"quality": ["gopher"], "thresholds": {"gopher": {"min_doc_words": "abc"}}}, "min_doc_words: give a float"),
        ({"personal": {"action": "keep", "kinds": ["email"]}}, "kinds has no meaning with action: keep"),
        ({"thresholds": {"c4": {}}}, "`quality` does not name c4"),
        ({"personal": {"kinds": ["mail"]}}, "personal data: mail: no such kind"),
        ({"personal": {"region": "XX"}}, "region 'XX': give a country"),
        ({"html": "always"}, "html: always takes documents only"),
        ({"qualty": []}, "did you mean `quality`"),
    ):
        with pytest.raises(InputError, match=said):
            cleaned(tmp_path, row, as_="demonstrations", **options)
        assert not [*(tmp_path / "out").glob("*")]


def test_too_large_a_share_writes_nothing_and_a_higher_limit_goes_on(tmp_path: Path) -> None:
    rows = [{"text": LONG}, {"text": "short"}]
    with pytest.raises(InputError, match=r"1 of 2 records would be removed.*0\.4 allows; 1 by gopher"):
        cleaned(tmp_path, *rows, as_="corpus", quality=["gopher"], most_removed=0.4)
    assert not (tmp_path / "out/kept.jsonl").exists()
    _, kept, removed = cleaned(tmp_path, *rows, as_="corpus", quality=["gopher"], most_removed=0.5)
    assert (len(kept), len(removed)) == (1, 1)
