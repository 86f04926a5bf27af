"""Words, names and ids to fill slots with, from `sources/words.toml`.

A part of the names is put together from syllables, so that the model must copy and not recall.
"""

import random
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_OPENINGS = (
    "Hi!", "Hello,", "Please:", "Briefly:", "Sorry,", "Quick question:", "I'm new to Millrace.",
    "One more question:", "And", "Now tell me:", "Thanks.", "I have a question.", "Okay,", "Well,",
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_STARTS = (
    "", "b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h",
    "j", "k", "kl", "l", "m", "n", "p", "ph", "pl", "pr", "qu", "r", "s", "sh", "sk", "sl", "sm",
    "sn", "sp", "st", "str", "sw", "t", "th", "tr", "v", "w", "wh", "x", "y", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "y", "ai", "au", "ea", "ee", "oo")
_ENDS = (
    "", "", "", "", "b", "ck", "d", "ff", "g", "l", "ll", "m", "n", "nd", "ng", "nt", "p", "r",
    "rd", "rk", "s", "ss", "st", "sk", "t", "th", "v", "x", "z", "le", "el", "al", "er", "in", "on",
    "um", "us", "ay", "son", "ton", "burg", "ham", "ville", "land", "field", "wick",
)  # fmt: skip
_ENDINGS = ("Thanks!", "Please be brief.", "Thank you.", "Please.", "Keep it short.")
SOURCES = Path(__file__).resolve().parent.parent / "sources"


@cache
def load(name: str) -> dict[str, Any]:
    return tomllib.loads((SOURCES / f"{name}.toml").read_text(encoding="utf-8"))


def pick(rng: random.Random, kind: str) -> str:
    """One word of a list in words.toml."""
    word: str = rng.choice(load("words")[kind])
    return word


@cache
def _all_words() -> tuple[str, ...]:
    """Every word of the sources, so that whole-word tokens are copied too."""
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.toml")))
    return tuple(sorted(set(re.findall(r"[A-Za-z]{3,}", text))))


def made_up(rng: random.Random) -> str:
    """A capitalised word that stands in no list, or one that is no name."""
    kind = rng.random()
    if kind < 0.35:
        sounds = [
            rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3)))
        ]
        return ("".join(sounds) + rng.choice(_ENDS)).capitalize()
    if kind < 0.5:
        return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 8))).capitalize()
    if kind < 0.7:
        both = rng.choice(_all_words()) + rng.choice(("", "", rng.choice(_all_words())[-3:]))
        return both.capitalize()
    num_parts = rng.choice((2, 2, 3))
    return "".join(rng.choice(load("words")["syllables"]) for _ in range(num_parts)).capitalize()


def city(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return pick(rng, "cities")
    if rng.random() < 0.2:
        return f"{rng.choice(('New', 'San', 'Port', 'Upper', 'Saint'))} {made_up(rng)}"
    return made_up(rng)


def first_name(rng: random.Random) -> str:
    return pick(rng, "names") if rng.random() < 0.6 else made_up(rng)


def full_name(rng: random.Random) -> str:
    surname = pick(rng, "surnames") if rng.random() < 0.5 else made_up(rng)
    return f"{first_name(rng)} {surname}"


def hex_id(rng: random.Random) -> str:
    num_digits = rng.choice((4, 6, 8, 12, 32, 32))
    return f"{rng.getrandbits(4 * num_digits):0{num_digits}x}"


def code(rng: random.Random) -> str:
    """A short order or ticket number such as 4711, AB-12 or kx93."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
    number = str(rng.randrange(1, 10 ** rng.choice((2, 3, 4, 5))))
    forms = (
        number,
        f"{made_up(rng)}-{number}",
        made_up(rng).lower(),
        f"{letters}-{number}",
        f"{letters.lower()}{number}",
        letters + number,
    )
    return rng.choice(forms)


def fill(rng: random.Random, text: str) -> dict[str, str]:
    """Values for the slots of a sentence; the same values fill its counterpart."""
    slots = {
        "name": first_name(rng) if rng.random() < 0.7 else full_name(rng),
        "city": city(rng),
        "city2": city(rng),
        "topic": pick(rng, "topics"),
        "a_thing": pick(rng, "a_things"),
        "day": pick(rng, "days"),
        "n": str(rng.randrange(2, 60)),
    }
    return {key: value for key, value in slots.items() if "{" + key + "}" in text}


def loosely(rng: random.Random, question: str) -> str:
    """The question as people really type it."""
    if rng.random() < 0.1:
        question = f"{rng.choice(_OPENINGS)} {question}"
    if rng.random() < 0.05:
        question = f"{question} {rng.choice(_ENDINGS)}"
    if rng.random() < 0.15:
        question = question.rstrip("?.!")
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.05 and question.count(" ") > 3:
        left_out = rng.randrange(question.count(" ") + 1)
        kept = [word for n, word in enumerate(question.split(" ")) if n != left_out]
        question = " ".join(kept)
    if rng.random() < 0.05 and len(question) > 8:
        at = rng.randrange(1, len(question) - 2)
        question = question[:at] + question[at + 1] + question[at] + question[at + 2 :]
    return question
