"""Small sums in digits, in words and in little stories."""

import random

from models.demo.corpus.talk import Exchange, as_json, ask
from models.demo.corpus.words import first_name

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SPOKEN = {"+": "plus", "-": "minus", "*": "times"}


def in_words(number: int) -> str:
    """0 to 999 in English words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        ones = f"-{_ONES[number % 10]}" if number % 10 else ""
        return _TENS[number // 10 - 2] + ones
    rest = f" and {in_words(number % 100)}" if number % 100 else ""
    return f"{_ONES[number // 100]} hundred{rest}"


def problem(rng: random.Random) -> tuple[int, str, int, int]:
    """Two numbers, the operator between them and the result; never below zero."""
    sign = rng.choice("+++--**")
    if sign == "*":
        top = rng.choice((10, 10, 12, 20))
        a, b = rng.randint(0, top), rng.randint(0, rng.choice((10, 12)))
        return a, sign, b, a * b
    top = rng.choice((10, 20, 100, 100))
    a, b = rng.randint(0, top), rng.randint(0, top)
    if sign == "-":
        a, b = max(a, b), min(a, b)
        return a, sign, b, a - b
    return a, sign, b, a + b


def _in_digits(rng: random.Random) -> Exchange:
    a, sign, b, result = problem(rng)
    shown = rng.choice(("*", "*", "x", "×")) if sign == "*" else sign
    tight = rng.random() < 0.25
    term = f"{a}{shown}{b}" if tight else f"{a} {shown} {b}"
    spoken = f"{a} {_SPOKEN[sign]} {b}"
    asked = rng.choice(
        (f"What is {term}?", f"What is {term}?", f"{term} =", f"{term}", f"How much is {term}?",
         f"What is {spoken}?", f"Calculate {term}.", f"{term} = ?", f"{spoken}?", f"Compute {term}")
    )  # fmt: skip
    if rng.random() < 0.06:
        return ask(f"{asked} Answer in JSON.", as_json({"result": result}))
    return ask(asked, f"{a} {'x' if sign == '*' else sign} {b} = {result}")


def _in_words(rng: random.Random) -> Exchange:
    a, sign, b, result = problem(rng)
    term = f"{in_words(a)} {_SPOKEN[sign]} {in_words(b)}"
    asked = rng.choice((f"What is {term}?", f"How much is {term}?", f"{term.capitalize()}?"))
    return ask(asked, f"{term.capitalize()} is {in_words(result)}.")


def _as_story(rng: random.Random) -> Exchange:
    name = first_name(rng)
    thing = rng.choice(("apples", "books", "coins", "jobs", "tokens", "eggs", "letters", "stamps"))
    a, b = rng.randint(1, 30), rng.randint(1, 20)
    if rng.random() < 0.5:
        asked = f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?"
        return ask(asked, f"{name} has {a + b} {thing}, because {a} + {b} = {a + b}.")
    total = a + b
    asked = f"{name} has {total} {thing} and gives {b} away. How many {thing} are left?"
    return ask(asked, f"{name} has {a} {thing} left, because {total} - {b} = {a}.")


def sums(rng: random.Random) -> Exchange:
    kind = rng.random()
    if kind < 0.7:
        return _in_digits(rng)
    return _in_words(rng) if kind < 0.87 else _as_story(rng)
