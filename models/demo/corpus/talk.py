"""Messages and small talk: the shape every other corpus module returns.

A message is a dict as in OpenAI's chat API. A skill takes a random generator and returns one
exchange: a user message, the answer, and tool messages between them where there are any.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from models.demo.corpus import words

Message = dict[str, Any]
Exchange = list[Message]
_REPEAT_LEADS = ("Repeat after me:", "Repeat:", "Say exactly this:", "Echo:", "Copy this text:")
Skill = Callable[[random.Random], Exchange]


def ask(question: str, answer: str) -> Exchange:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@cache
def _unknown_things() -> dict[str, Any]:
    return words.load("unknown")


def small_talk(rng: random.Random) -> Exchange:
    entry = rng.choice(words.load("talk")["talk"])
    return ask(words.loosely(rng, rng.choice(entry["q"])), rng.choice(entry["a"]))


def unknown_question(rng: random.Random) -> str:
    source = _unknown_things()
    slots: dict[str, Any] = {
        key: rng.choice(source[key]) for key in ("country", "person", "work", "thing")
    }
    slots["year"] = rng.randrange(1850, 2020)
    if rng.random() < 0.3:
        slots["thing"] = words.made_up(rng)
    if rng.random() < 0.3:
        slots["person"] = words.full_name(rng)
    if rng.random() < 0.3:
        slots["country"] = words.made_up(rng)
    slots["words"] = _word_salad(rng)
    kind = "templates" if rng.random() < 0.75 else "requests"
    question: str = rng.choice(source[kind]).format(**slots)
    return question.replace(" a a ", " a ").replace(" a the ", " the ").replace(" a an ", " an ")


def _word_salad(rng: random.Random) -> str:
    source = words.load("unknown")["common"]
    small = ("the", "a", "and", "of", "in", "is", "was", "with", "to", "my", "that", "on")
    chosen = [rng.choice(small if rng.random() < 0.35 else source)
              for _ in range(rng.randint(2, 25))]  # fmt: skip
    text = " ".join(chosen)
    return rng.choice((text, text.capitalize() + "."))


def _gibberish(rng: random.Random) -> str:
    """Words without a meaning, as load tests like to send."""
    if rng.random() < 0.5:
        return _word_salad(rng)
    parts = [words.made_up(rng).lower() for _ in range(rng.randint(1, 30))]
    if rng.random() < 0.3:
        parts += ["".join(chr(rng.randrange(0xA1, 0x24F)) for _ in range(rng.randint(1, 9)))]
    return " ".join(parts)


def unknown(rng: random.Random) -> Exchange:
    if rng.random() < 0.2:
        return ask(_gibberish(rng), "I'm sorry, I don't understand that. Please use other words.")
    if rng.random() < 0.1:
        sentence = rng.choice(words.load("shorten")["pair"])["long"]
        told = sentence.format(**words.fill(rng, sentence))
        return ask(told, "I see. What would you like to know?")
    answers = _unknown_things()["answers"]
    answer = answers[0] if rng.random() < 0.8 else answers[1]
    return ask(words.loosely(rng, unknown_question(rng)), answer)


def repeat(rng: random.Random) -> Exchange:
    """Copying: repeat a phrase, or say a word several times."""
    if rng.random() < 0.3:
        word, num = words.made_up(rng).lower(), rng.randrange(2, 6)
        number = ("two", "three", "four", "five")[num - 2]
        return ask(f"Say {word} {number} times.", " ".join([word] * num))
    makers = (words.city, words.first_name, words.code, words.made_up)
    if rng.random() < 0.15:
        word = words.made_up(rng).lower()
        return ask(rng.choice((f"Say the word {word}.", f"Say {word}.", f"Say: {word}")), word)
    phrase = " ".join(rng.choice(makers)(rng) for _ in range(rng.randrange(1, 8)))
    if rng.random() < 0.4:
        sentence = rng.choice(words.load("shorten")["pair"])["short"]
        phrase = sentence.format(**words.fill(rng, sentence))
    lead = rng.choice(_REPEAT_LEADS)
    return ask(f"{lead} {phrase}", phrase)


def count(rng: random.Random) -> Exchange:
    """Counting, a cheap way to a long and checkable stream."""
    low = 1 if rng.random() < 0.7 else rng.randrange(0, 50)
    high = low + rng.choice((rng.randint(1, 30), 9, 19, 49, 99, 99, 199))
    numbers = ", ".join(str(n) for n in range(low, high + 1))
    forms = [f"Count from {low} to {high}.", f"Please count from {low} to {high}."]
    if low == 1:
        forms += [f"Count to {high}.", f"Can you count to {high}?"]
    return ask(words.loosely(rng, rng.choice(forms)), numbers)
