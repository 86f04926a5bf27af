"""Questions and answers about Millrace, from `sources/facts_*.toml`."""

import random
import re
from dataclasses import dataclass
from functools import cache

from models.demo.corpus.talk import Exchange, as_json, ask
from models.demo.corpus.words import SOURCES, load, loosely

FILES = tuple(sorted(path.stem for path in SOURCES.glob("facts_*.toml")))

TERM_FORMS = (
    "What {be} {t}?", "What {be} {t}?", "Explain {t}.", "Can you explain what {t} {be}?",
    "Tell me what {t} {be}.", "Define {t}.", "What does Millrace mean by {t}?",
    "Please describe {t}.", "Tell me about {t}.", "Give me a short definition of {t}.",
    "In Millrace, what {be} {t}?", "What exactly {be} {t}?", "I don't know what {t} {be}.",
    "What do you know about {t}?", "Could you tell me what {t} {be}, please?",
    "What is meant by {t}?", "Say in a few words what {t} {be}.", "I want to understand {t}.",
    "{bare}?", "{bare}", "Can you explain {t} to me?", "Help me understand {t}.", "Describe {t}.",
    "Please explain {t}.", "What's the definition of {t}?", "So what {be} {t}?",
)  # fmt: skip
ASK_FORMS = (
    "Can you tell me {x}?", "Explain {x}.", "Please tell me {x}.", "I would like to know {x}.",
    "Do you know {x}?", "Tell me {x}.", "Could you explain {x}?", "I wonder {x}.",
    "Say in a few words {x}.", "Please explain {x}.", "Help me understand {x}.",
    "I'd like to understand {x}.", "Can you explain {x} to me?",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One thing to know. `clause` fits after "the user asked"."""

    key: str
    clause: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    title: str
    facts: tuple[Fact, ...]


def _fact(entry: dict[str, object]) -> Fact:
    own, answers = entry["q"], entry["a"]
    assert isinstance(own, list)
    assert isinstance(answers, list)
    if "term" in entry:
        be = entry.get("are", "is")
        key, clause = str(entry["term"]), f"what {entry['term']} {be}"
        bare = re.sub(r"^(an?|the) ", "", key)
        made = [form.format(t=key, be=be, bare=bare) for form in TERM_FORMS]
    else:
        key = clause = str(entry["ask"])
        made = [form.format(x=clause) for form in ASK_FORMS]
    # Own questions are as frequent as the made ones.
    own_again = own * max(1, len(made) // (2 * len(own)))
    return Fact(key, clause, tuple(made + own_again), tuple(answers))


@cache
def topics() -> tuple[Topic, ...]:
    sources = [load(name) for name in FILES]
    return tuple(Topic(s["topic"], tuple(_fact(e) for e in s["fact"])) for s in sources)


@cache
def facts() -> tuple[Fact, ...]:
    return tuple(fact for topic in topics() for fact in topic.facts)


def question(rng: random.Random, fact: Fact) -> str:
    return loosely(rng, rng.choice(fact.questions))


def fact_exchange(rng: random.Random) -> Exchange:
    fact = rng.choice(facts())
    asked, answer = question(rng, fact), rng.choice(fact.answers)
    if rng.random() < 0.03:
        asked = f"{asked} {rng.choice(('Answer in JSON.', 'Reply as JSON.'))}"
        answer = as_json({"answer": answer})
    return ask(asked, answer)


def detail(rng: random.Random) -> Exchange:
    """A long answer: the facts of one topic in order, three to a paragraph."""
    topic = rng.choice(topics())
    forms = (
        f"Explain in detail: {topic.title}.",
        f"Tell me in detail about {topic.title}.",
        f"Explain {topic.title} in detail.",
        f"Write a long text about {topic.title}.",
        f"Tell me everything about {topic.title}.",
    )
    told = [fact.answers[0] for fact in topic.facts]
    sentences = [answer for answer in told if not answer.startswith(("Yes,", "No,"))][:12]
    paragraphs = [" ".join(sentences[at : at + 3]) for at in range(0, len(sentences), 3)]
    return ask(loosely(rng, rng.choice(forms)), "\n\n".join(paragraphs))


def summary(rng: random.Random) -> Exchange:
    """A conversation about two or three facts, written out, and its summary."""
    chosen = rng.sample(facts(), rng.choice((2, 2, 3)))
    lines = [f"User: {rng.choice(f.questions)}\nAssistant: {f.answers[0]}" for f in chosen]
    lead = rng.choice(
        ("Summarise this conversation:", "Summarize this conversation in one sentence:",
         "What was this conversation about?")
    )  # fmt: skip
    return ask(f"{lead}\n" + "\n".join(lines), summary_of([f.clause for f in chosen]))


def summary_of(clauses: list[str]) -> str:
    if len(clauses) == 1:
        return f"The user asked {clauses[0]}."
    return f"The user asked {', '.join(clauses[:-1])} and {clauses[-1]}."
