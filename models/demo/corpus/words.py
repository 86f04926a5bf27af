"""Words, names and ids to fill slots with, from `sources/words.toml`.

A part of the names is put together from syllables, so that the model must copy and not recall.
"""

import random
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent.parent / "sources"


@cache
def load(name: str) -> dict[str, Any]:
    return tomllib.loads((SOURCES / f"{name}.toml").read_text(encoding="utf-8"))


def pick(rng: random.Random, kind: str) -> str:
    """One word of a list in words.toml."""
    word: str = rng.choice(load("words")[kind])
    return word


def made_up(rng: random.Random) -> str:
    """A capitalised word that stands in no list."""
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
    return rng.choice((number, f"{letters}-{number}", f"{letters.lower()}{number}", letters + number))


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
    if rng.random() < 0.06:
        question = f"{rng.choice(('Hi!', 'Hello,', 'Please:', 'Briefly:', 'Sorry,'))} {question}"
    if rng.random() < 0.15:
        question = question.rstrip("?.!")
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.05 and len(question) > 8:
        at = rng.randrange(1, len(question) - 2)
        question = question[:at] + question[at + 1] + question[at] + question[at + 2 :]
    return question
