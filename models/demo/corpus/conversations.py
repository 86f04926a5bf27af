"""Conversations: system prompts, tools, memory, and turns of all skills mixed.

`conversation(rng, num_chars)` is all that training needs.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from models.demo.corpus import facts, sums, talk, texts, tools, words
from models.demo.corpus.talk import Exchange, Message, Skill, ask

# Skill and weight. Weights count exchanges, not tokens.
SKILLS: tuple[tuple[Skill, float], ...] = (
    (facts.fact_exchange, 40.0),
    (sums.sums, 16.0),
    (texts.extraction, 10.0),
    (texts.lists, 6.0),
    (talk.small_talk, 6.0),
    (talk.unknown, 5.0),
    (texts.shorten, 6.0),
    (talk.repeat, 4.0),
    (facts.summary, 1.5),
    (tools.missing_tool, 1.5),
    (texts.story, 1.5),
    (facts.detail, 1.2),
    (talk.count, 1.0),
)
_PLAIN_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "Be brief and polite.",
    "You are demo, a small assistant for Millrace.", "Answer the user's questions.",
    "You help people who run Millrace.", "You are a friendly assistant. Answer in English.",
    "Answer briefly.", "You are a helpful assistant. Use the tools when they help.",
)  # fmt: skip

# What a user may tell: key, how it is told, how it is asked, the answer, the words if not told.
_MEMORIES = (
    (
        "name",
        ("My name is {v}.", "I'm {v}.", "Hello, I am {v}."),
        ("What is my name?", "Who am I?", "Do you remember my name?"),
        "Your name is {v}.",
        "your name",
    ),
    (
        "city",
        ("I live in {v}.", "I come from {v}."),
        ("Where do I live?", "Which city do I live in?"),
        "You live in {v}.",
        "where you live",
    ),
    (
        "code",
        ("The code is {v}.", "Remember the code {v}.", "Please remember this code: {v}."),
        ("What is the code?", "Which code did I tell you?"),
        "The code is {v}.",
        "a code",
    ),
    (
        "dog",
        ("My dog is called {v}.", "I have a dog named {v}."),
        ("What is my dog called?", "What is the name of my dog?"),
        "Your dog is called {v}.",
        "your dog's name",
    ),
)
_NOTED = (
    "password", "code", "secret word", "meeting day", "colour", "team", "project", "address",
    "key",
    "number", "answer", "train", "room", "boss", "ship", "company", "street", "book", "winner",
    "place",
)  # fmt: skip


@dataclass
class Conversation:
    messages: list[Message] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_chars(self) -> int:
        return sum(len(str(m.get("content") or "")) + 40 for m in self.messages)


def _value(rng: random.Random, key: str) -> str:
    if key == "city":
        return words.city(rng)
    return words.code(rng) if key == "code" else words.first_name(rng)


def _note_turn(rng: random.Random, known: dict[str, str]) -> Exchange:
    """Any other thing that is told and asked: the password, the room, the winner."""
    told = [key for key in known if key in _NOTED]
    if told and rng.random() < 0.7:
        thing = rng.choice(told)
        forms = (
            f"What is the {thing}?",
            f"Which {thing} did I tell you?",
            f"Remind me of the {thing}.",
        )
        return ask(rng.choice(forms), f"The {thing} is {known[thing]}.")
    thing = rng.choice(_NOTED)
    makers = (words.made_up, words.code, words.city, words.full_name)
    known[thing] = rng.choice(makers)(rng)
    forms = (
        f"The {thing} is {{}}.",
        f"Remember that the {thing} is {{}}.",
        f"Note: the {thing} is {{}}.",
    )
    return ask(rng.choice(forms).format(known[thing]), f"Noted, the {thing} is {known[thing]}.")


def _memory_turn(rng: random.Random, known: dict[str, str]) -> Exchange:
    """Tell something, or ask for what was told before in this conversation."""
    if rng.random() < 0.4:
        return _note_turn(rng, known)
    key, told, asked, answer, clause = rng.choice(_MEMORIES)
    if key in known and rng.random() < 0.8:
        return ask(rng.choice(asked), answer.format(v=known[key]))
    if key not in known and rng.random() < 0.15:
        return ask(rng.choice(asked), f"You have not told me {clause} yet.")
    known[key] = _value(rng, key)
    replies = {
        "name": "Nice to meet you, {v}!",
        "city": "I see, you live in {v}.",
        "code": "I will remember the code {v}.",
        "dog": "{v} is a nice name for a dog.",
    }
    return ask(rng.choice(told).format(v=known[key]), replies[key].format(v=known[key]))


def _unusual_system(rng: random.Random) -> str:
    """A prompt that changes nothing: a role, a place, or some sentences to know."""
    role = rng.choice((words.pick(rng, "jobs"), words.made_up(rng).lower(), "pirate", "poet"))
    parts = [
        f"You are a {role}.",
        f"You work for {words.full_name(rng)} in {words.city(rng)}.",
        f"Today is {words.pick(rng, 'days')}.",
        f"Never talk about {words.pick(rng, 'topics')}.",
        rng.choice(_PLAIN_SYSTEMS),
    ]
    chosen = rng.sample(parts, rng.randint(1, 4))
    if rng.random() < 0.2:
        chosen += [texts.short_pair(rng)[0] for _ in range(rng.randint(1, 10))]
    return " ".join(chosen)


def _system(rng: random.Random, talk_so_far: Conversation) -> Exchange:
    """A system prompt in half of the conversations; some give a name, which is then asked."""
    if rng.random() < 0.5:
        return []
    if rng.random() < 0.25:
        talk_so_far.messages.append({"role": "system", "content": _unusual_system(rng)})
        return []
    if rng.random() < 0.9:
        talk_so_far.messages.append({"role": "system", "content": rng.choice(_PLAIN_SYSTEMS)})
        return []
    name = words.first_name(rng)
    system = rng.choice((f"You are {name}, a helpful assistant.", f"Your name is {name}."))
    talk_so_far.messages.append({"role": "system", "content": system})
    asked = rng.choice(("Who are you?", "What is your name?", "What's your name?"))
    return ask(asked, f"I'm {name}, a small assistant.")


def _turn(rng: random.Random, box: list[tools.Tool], known: dict[str, str]) -> Exchange:
    if box and rng.random() < 0.7:
        return tools.tool_exchange(rng, box)
    if rng.random() < (0.3 if known else 0.04):
        return _memory_turn(rng, known)
    while True:
        skill = rng.choices([s for s, _ in SKILLS], [w for _, w in SKILLS])[0]
        if not (box and skill is tools.missing_tool):
            return skill(rng)


def _closing_summary(rng: random.Random, asked: list[facts.Fact]) -> Exchange:
    lead = rng.choice(("Summarise our conversation.", "What did we talk about?",
                       "Summarize the conversation so far."))  # fmt: skip
    return ask(lead, facts.summary_of([fact.clause for fact in asked]))


def summarised(rng: random.Random) -> Conversation:
    """Two to four facts and then a summary of the conversation itself."""
    asked = rng.sample(facts.facts(), rng.choice((2, 2, 3, 4)))
    made = Conversation()
    for fact in asked:
        made.messages += ask(facts.question(rng, fact), fact.answers[0])
    made.messages += _closing_summary(rng, asked)
    return made


def remembered(rng: random.Random, num_chars: int) -> Conversation:
    """Something told at the very beginning and asked only after `num_chars` characters."""
    made, known = Conversation(), dict[str, str]()
    while not known:
        made.messages = _note_turn(rng, known)
    while made.num_chars < num_chars:
        made.messages += _turn(rng, [], {})
    for thing, value in known.items():
        asked = rng.choice(("What is the {}?", "Which {} did I tell you?", "Remind me of the {}."))
        made.messages += ask(asked.format(thing), f"The {thing} is {value}.")
    return made


def conversation(rng: random.Random, num_chars: int) -> Conversation:
    """Turns until `num_chars` characters are reached; 0 gives a single exchange."""
    if rng.random() < 0.02:
        return summarised(rng)
    if num_chars and rng.random() < 0.25:
        return remembered(rng, rng.randint(0, num_chars))
    made, known = Conversation(), dict[str, str]()
    box = tools.toolbox(rng) if rng.random() < 0.3 else []
    is_described = rng.random() < 0.8
    made.tools = [tools.schema(tool, is_described=is_described) for tool in box]
    made.messages += _system(rng, made)
    if num_chars and rng.random() < 0.4:
        made.messages += _memory_turn(rng, known)
    while not _is_answered(made) or made.num_chars < num_chars:
        made.messages += _turn(rng, box, known)
        if made.messages[-1].get("tool_calls"):
            break
    return made


def _is_answered(made: Conversation) -> bool:
    return any(message["role"] == "assistant" for message in made.messages)
