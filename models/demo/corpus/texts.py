"""Lists, data extraction, shortening and stories."""

import random

from models.demo.corpus import words
from models.demo.corpus.talk import Exchange, as_json, ask

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


def lists(rng: random.Random) -> Exchange:
    """Lists as prose, as lines or as JSON. The order is fixed, so greedy decoding is clear."""
    kind, members = rng.choice(list(words.load("words")["things"].items()))
    num = min(rng.choice((2, 3, 3, 3, 4, 5)), len(members))
    chosen = members[:num]
    number = _NUMBERS[num] if rng.random() < 0.7 else str(num)
    verb = rng.choice(("List", "List", "Name", "Give me", "Tell me"))
    request = f"{verb} {number} {kind}"
    form = rng.random()
    if form < 0.4:
        suffix = rng.choice((" as JSON.", " in JSON.", " as JSON, please.", ". Answer in JSON."))
        return ask(request + suffix, as_json({"items": chosen}))
    if form < 0.5:
        key = kind.split()[-1].lower()
        return ask(f'{request} as JSON with the key "{key}".', as_json({key: chosen}))
    if form < 0.62:
        lines = "\n".join(f"{n}. {member}" for n, member in enumerate(chosen, 1))
        return ask(f"{request} as a numbered list.", lines)
    prose = f"{', '.join(chosen[:-1])} and {chosen[-1]}"
    return ask(words.loosely(rng, f"{request}."), f"Here are {_NUMBERS[num]} {kind}: {prose}.")


_PERSON = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, from {city}, works as a {job}.",
    "My name is {name}, I am {age} and I work as a {job} in {city}.",
    "In {city} there lives a {job} called {name}, who is {age}.",
    "The {job} {name} ({age}) comes from {city}.",
    "{name} works as a {job} in {city} and will be {next} next year.",
)
_ORDER = (
    "{name} ordered {num} {item} on {day} for {price} euros.",
    "On {day} we sent {num} {item} to {name} for {price} euros.",
    "Order of {day}: {num} {item} for {name}, {price} euros in all.",
)


def _person(rng: random.Random) -> tuple[str, dict[str, object]]:
    template = rng.choice(_PERSON)
    age = rng.randint(5, 95)
    values: dict[str, object] = {
        "name": words.full_name(rng) if rng.random() < 0.6 else words.first_name(rng),
        "age": age,
        "city": words.city(rng),
        "job": words.pick(rng, "jobs"),
    }
    known = {key: value for key, value in values.items() if "{" + key + "}" in template}
    return template.format(**values, next=age + 1), known


def _order(rng: random.Random) -> tuple[str, dict[str, object]]:
    values: dict[str, object] = {
        "name": words.full_name(rng),
        "num": rng.randint(2, 40),
        "item": rng.choice(("books", "chairs", "lamps", "cups", "apples", "pencils", "tickets")),
        "day": words.pick(rng, "days"),
        "price": rng.randint(3, 400),
    }
    return rng.choice(_ORDER).format(**values), values


_CONTACT = (
    "{name}, {email}", "Write to {name} at {email} or call {phone}.", "{name} ({company}), {phone}",
    "{name} works for {company}. Her address is {email}.",
    "Name: {name}, phone: {phone}, {country}",
    "Contact for {company} in {country}: {name}, {email}.",
)  # fmt: skip


def _contact(rng: random.Random) -> tuple[str, dict[str, object]]:
    template = rng.choice(_CONTACT)
    name = words.full_name(rng)
    user = name.split()[0].lower()
    host = rng.choice(("example.com", "example.org", f"{words.made_up(rng).lower()}.com"))
    values: dict[str, object] = {
        "name": name,
        "email": f"{user}@{host}",
        "phone": f"{rng.randrange(100, 1000)}-{rng.randrange(1000, 10000)}",
        "company": f"{words.made_up(rng)} {rng.choice(('Ltd', 'Inc', 'AG', 'Works', 'Group'))}",
        "country": rng.choice((words.made_up(rng), "France", "Japan", "Brazil", "Norway")),
    }
    known = {key: value for key, value in values.items() if "{" + key + "}" in template}
    return template.format(**values), known


def extraction(rng: random.Random) -> Exchange:
    """Copy some of the values of a sentence into JSON, in the order they are asked for."""
    text, known = rng.choice((_person, _person, _order, _contact))(rng)
    keys = rng.sample(list(known), rng.randint(1, len(known)))
    wanted = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    asked = rng.choice(
        (f"Extract the {wanted} as JSON: {text}", f"Extract {wanted} as JSON: {text}",
         f"Extract the {wanted} from this text as JSON: {text}",
         f"Give me the {wanted} as JSON.\n\n{text}", f"{text}\n\nExtract the {wanted} as JSON.",
         f"Which {wanted} stand in this text? Answer in JSON: {text}")
    )  # fmt: skip
    return ask(asked, as_json({key: known[key] for key in keys}))


def shorten(rng: random.Random) -> Exchange:
    pair = rng.choice(words.load("shorten")["pair"])
    slots = words.fill(rng, pair["long"])
    lead = rng.choice(
        ("Shorten this:", "Shorten this sentence:", "Make this shorter:",
         "Say this in fewer words:", "Summarise this:", "Please shorten:")
    )  # fmt: skip
    return ask(f"{lead} {pair['long'].format(**slots)}", pair["short"].format(**slots))


def short_pair(rng: random.Random) -> tuple[str, str]:
    """A long sentence and its short form, for the embedding model."""
    pair = rng.choice(words.load("shorten")["pair"])
    slots = words.fill(rng, pair["long"])
    return pair["long"].format(**slots), pair["short"].format(**slots)


def story(rng: random.Random) -> Exchange:
    source = words.load("stories")
    hero, name = rng.choice(source["heroes"]), words.first_name(rng)
    asked = ["Tell me a story.", "Write a story.", "Tell me a long story.", "I want a story."]
    about_hero = [f"Tell me a story about a {hero}.", f"Write a long story about a {hero}."]
    about_name = [
        f"Tell me a story about a {hero} called {name}.",
        f"Write a story about {name} the {hero}.",
    ]
    slots = {
        "hero": hero,
        "name": name,
        "place": rng.choice(source["places"]),
        "object": rng.choice(source["objects"]),
        "helper": rng.choice(source["helpers"]),
    }
    paragraphs = [
        " ".join(rng.choice(pool).format(**slots) for pool in paragraph["sentences"])
        for paragraph in source["paragraph"]
    ]
    question = rng.choice(rng.choice((asked, about_hero, about_name)))
    return ask(words.loosely(rng, question), "\n\n".join(paragraphs))
