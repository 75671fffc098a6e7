"""Spoils clean passages as text from the web is spoilt, by a seed. It knows no cleaning and no model."""

import html
from random import Random

LINES = (
    "Click here to subscribe to our newsletter",
    "Share this page on Facebook | Tweet | Pin it",
    "This site uses cookies. By staying here you accept our privacy policy.",
    "Advertisement",
    "Home > Books > Classics > Read online",
    "Please enable JavaScript to read the comments.",
    "Log in | Register | Forgot your password?",
    "Copyright 2019 Free Classics Online. All rights reserved.",
)
MARKUP = ('<div class="text">', "</div>", "<br/>", '<p id="p12">', "&nbsp;&nbsp;", "<!-- ad slot 3 -->")
GOODS = ("shoes", "cheap flights", "printer ink", "phone cases", "car insurance", "garden chairs", "watches")
SHARES = {
    "light": {"encoding": 0.2, "page": 0.15, "markup": 0.15, "lines": 0.25, "exact": 0.3, "near": 0.2, "spam": 0.1},
    "heavy": {"encoding": 0.2, "page": 0.3, "markup": 0.15, "lines": 0.35, "exact": 0.5, "near": 0.5, "spam": 1.0},
}
"""Share of the passages that each kind of noise meets. The first four exclude each other, the rest come on top:
an exact copy, a copy that differs in a few words, and a page of nothing but advertisements."""


def spoil(passages: list[str], shares: dict[str, float], seed: int) -> tuple[list[str], dict[str, int]]:
    """The passages with noise, shuffled, and how often each kind was made."""
    random, made, counts = Random(seed), list[str](), dict.fromkeys(shares, 0)
    spoilers = {"encoding": _mistaken, "page": _page, "markup": _markup, "lines": _lines}
    for passage in passages:
        draw, text = random.random(), passage
        for kind, spoiler in spoilers.items():
            if 0 <= draw < shares[kind]:
                text = spoiler(passage, random)
                counts[kind] += 1
            draw -= shares[kind]
        made.append(text)
        for kind, copy in (("exact", text), ("near", _near(text, random)), ("spam", _spam(random))):
            if random.random() < shares[kind]:
                made.append(copy)
                counts[kind] += 1
    random.shuffle(made)
    return made, counts


def _mistaken(passage: str, random: Random) -> str:
    """Typographic quotes and dashes in UTF-8, read as Windows-1252."""
    text = passage.replace(' "', " “").replace('" ', "” ").replace("'", "’").replace("--", "—")
    return text.encode().decode("cp1252", errors="ignore")


def _page(passage: str, random: Random) -> str:
    """A whole HTML page around the passage."""
    menu = "".join(f"<li><a href='/{n}'>{html.escape(line)}</a></li>" for n, line in enumerate(LINES))
    body = "".join(f"<p>{html.escape(line)}</p>\n" for line in passage.splitlines())
    head = "<head><title>Read online</title><script>var ads = {slot: 3};</script></head>"
    return f"<!DOCTYPE html>\n<html>{head}<body><ul>{menu}</ul>\n<article>{body}</article></body></html>"


def _markup(passage: str, random: Random) -> str:
    """Remnants of HTML on lines of their own."""
    return "\n".join(f"{random.choice(MARKUP)}\n{line}" for line in passage.splitlines())


def _lines(passage: str, random: Random) -> str:
    """Two to five lines of a site's frame between the paragraphs."""
    lines = passage.splitlines()
    for line in random.sample(LINES, random.randint(2, 5)):
        lines.insert(random.randint(0, len(lines)), line)
    return "\n".join(lines)


def _near(passage: str, random: Random) -> str:
    """One word of a hundred replaced by its neighbour."""
    words = passage.split(" ")
    for _ in range(len(words) // 100 + 1):
        place = random.randrange(len(words))
        words[place] = words[max(0, place - 1)]
    return " ".join(words)


def _spam(random: Random) -> str:
    """Lines that say the same again and again."""
    goods = random.sample(GOODS, 3)
    return "\n".join(f"Buy {good} online - best {good} - {good} sale!" for _ in range(10) for good in goods)
