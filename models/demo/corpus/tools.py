"""Tools, their calls with arguments copied from the question, and answers from their results."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from models.demo.corpus import words
from models.demo.corpus.talk import Exchange, Message, as_json

Values = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function the model may call: how people ask for it and how its result is told.

    `result` returns the fields of a result, and `told` is filled from arguments and result.
    """

    name: str
    about: str
    types: dict[str, str]
    asked: tuple[str, ...]
    arguments: Callable[[random.Random], Values]
    result: Callable[[random.Random], Values]
    told: str
    keys: dict[str, str] = field(default_factory=dict)  # slot -> parameter, where they differ

    def key(self, slot: str) -> str:
        return self.keys.get(slot, slot)


_NOTES = ("the meeting is cancelled", "dinner is ready", "I am late", "call me back", "good luck")
_NOUNS = ("order", "ticket", "user", "parcel", "book", "room", "invoice", "account", "file")


def _weather(rng: random.Random) -> Values:
    sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy", "snowy"))
    return {"temperature": rng.randint(-15, 38), "condition": sky}


def _clock(rng: random.Random) -> Values:
    return {"time": f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"}


def _status(rng: random.Random) -> Values:
    states = ("queued", "in_progress", "completed", "incomplete", "failed", "cancelled")
    return {"status": rng.choice(states)}


def _job(rng: random.Random) -> Values:
    return {"job_id": f"job_{words.hex_id(rng)}"}


def _money(rng: random.Random) -> Values:
    coins = rng.sample(("EUR", "USD", "GBP", "JPY", "CHF", "NOK", "SEK", "INR"), 2)
    amount = rng.choice((5, 10, 20, 50, 100, rng.randint(1, 999), rng.randint(1, 9999)))
    return {"amount": amount, "from": coins[0], "to": coins[1]}


def _model(rng: random.Random) -> Values:
    model = rng.choice(("demo", "demo-mini", "demo-embed", words.made_up(rng).lower()))
    return {"model": model, "tier": rng.choice(("priority", "default", "flex", "batch"))}


def _route(rng: random.Random) -> Values:
    return {"from": words.city(rng), "to": words.city(rng)}


def _note(rng: random.Random) -> Values:
    text = rng.choice((*_NOTES, f"bring the {words.code(rng)} file"))
    return {"to": words.first_name(rng), "text": text}


TOOLS = (
    Tool("get_weather", "Get the weather of a city.", {"city": "string"},
         ("What is the weather in {city}?", "What's the weather like in {city}?",
          "How is the weather in {city} today?", "Is it raining in {city}?",
          "Tell me the weather in {city}.", "Weather in {city}?", "How warm is it in {city}?",
          "What is the temperature in {city}?", "Do I need an umbrella in {city}?"),
         lambda rng: {"city": words.city(rng)}, _weather,
         "It is {temperature} degrees and {condition} in {city}."),
    Tool("get_time", "Get the local time of a city.", {"city": "string"},
         ("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?",
          "What is the local time in {city}?", "Time in {city}?"),
         lambda rng: {"city": words.city(rng)}, _clock, "It is {time} in {city}."),
    Tool("get_job", "Get the state of a job.", {"job_id": "string"},
         ("What is the state of {job_id}?", "Show me the job {job_id}.", "How is {job_id} doing?",
          "Is {job_id} done?", "What is the status of job {job_id}?", "Look up {job_id}."),
         _job, _status, "The job {job_id} is {status}."),
    Tool("cancel_job", "Cancel a job.", {"job_id": "string"},
         ("Cancel {job_id}.", "Please cancel the job {job_id}.", "Stop the job {job_id}.",
          "Can you cancel {job_id}?"),
         _job, lambda rng: {"status": "cancelled"}, "The job {job_id} is {status}."),
    Tool("convert", "Convert an amount of money.",
         {"amount": "number", "from": "string", "to": "string"},
         ("Convert {amount} {from} to {to}.", "How much is {amount} {from} in {to}?",
          "What are {amount} {from} in {to}?", "Change {amount} {from} into {to}.",
          "Please convert {amount} {from} into {to}."),
         _money, lambda rng: {"result": rng.randint(1, 9999)},
         "{amount} {from} are {result} {to}."),
    Tool("get_price", "Get the price of a model in a service tier, in micros.",
         {"model": "string", "tier": "string"},
         ("What does {model} cost in the {tier} tier?", "Price of {model} in {tier}?",
          "How expensive is {model} in the {tier} tier?"),
         _model, lambda rng: {"micros": rng.randint(1, 900)},
         "{model} costs {micros} micros a token in the {tier} tier."),
    Tool("find_train", "Find the next train.", {"from": "string", "to": "string"},
         ("When is the next train from {from} to {to}?", "Find a train from {from} to {to}.",
          "I want to go from {from} to {to} by train."),
         _route, _clock, "The next train from {from} to {to} leaves at {time}."),
    Tool("send_message", "Send a message to a person.", {"to": "string", "text": "string"},
         ('Send {to} the message "{text}".', 'Tell {to}: "{text}"', 'Write to {to}: "{text}"'),
         _note, lambda rng: {"sent": True}, "I sent your message to {to}."),
)  # fmt: skip


_LOOKUP_FORMS = (
    "Show me {noun} {value}.",
    "What is the state of {noun} {value}?",
    "Find {noun} {value}.",
    "Look up the {noun} {value}.",
    "Where is {noun} {value}?",
)


def lookup_tool(rng: random.Random) -> Tool:
    """A tool the model has not seen in this form, so that it must read the list."""
    noun = rng.choice(_NOUNS) if rng.random() < 0.6 else words.made_up(rng).lower()
    verb = rng.choice(("get", "find", "lookup", "fetch", "show"))
    key = rng.choice((f"{noun}_id", "id", "number", noun))
    if key == "state":  # a made-up noun may be this word, which is the result's field
        key = "state_id"
    state = rng.choice(("open", "closed", "ready", "lost", "paid", "new", "sent"))
    value = "{" + key + "}"
    return Tool(
        name=f"{verb}_{noun}",
        about=f"{verb.capitalize()} a {noun}.",
        types={key: "string"},
        asked=tuple(form.format(noun=noun, value=value) for form in _LOOKUP_FORMS),
        arguments=lambda r: {key: words.code(r)},
        result=lambda _: {"state": state},
        told=f"The {noun} {value} is {{state}}.",
    )


_KEYS = {
    "city": ("city", "location", "place", "town", "city_name", "where", "q"),
    "job_id": ("job_id", "id", "job", "jobId", "name"),
    "from": ("from", "source", "from_currency", "start", "origin", "a"),
    "to": ("to", "target", "to_currency", "end", "destination", "recipient", "b"),
    "amount": ("amount", "value", "sum", "number", "x"),
    "text": ("text", "message", "body", "content", "note"),
    "model": ("model", "model_name", "name"),
    "tier": ("tier", "service_tier", "level"),
}
_VERBS = ("get", "fetch", "find", "query", "check", "read", "show", "lookup", "get_current", "my")


def renamed(rng: random.Random, tool: Tool) -> Tool:
    """The same tool under another name, with other parameter names."""
    keys: dict[str, str] = {}
    for slot in tool.types:
        free = [key for key in _KEYS[slot] if key not in keys.values()]
        keys[slot] = rng.choice(free) if rng.random() < 0.7 else slot
        if rng.random() < 0.1:
            keys[slot] = f"{words.made_up(rng).lower()}_{slot}"
    noun = tool.name.split("_")[-1]
    other = words.made_up(rng).lower()
    name = rng.choice(
        (f"{rng.choice(_VERBS)}_{noun}", f"{rng.choice(_VERBS)}_{noun}", noun, f"{noun}_tool",
         f"{rng.choice(_VERBS)}{noun.capitalize()}", f"{noun}_{other}", f"{other}_{noun}",
         tool.name)
    )  # fmt: skip
    if tool.name == "cancel_job":
        name = rng.choice(("cancel_job", "stop_job", "abort_job", "cancelJob", "kill_job"))
    return replace(tool, name=name, keys=keys)


def schema(tool: Tool, *, is_described: bool = True) -> dict[str, Any]:
    """The tool as it stands in a request."""
    function: dict[str, Any] = {"name": tool.name}
    if is_described:
        function["description"] = tool.about
    properties = {tool.key(slot): {"type": kind} for slot, kind in tool.types.items()}
    function["parameters"] = {
        "type": "object", "properties": properties, "required": list(properties)
    }  # fmt: skip
    return {"type": "function", "function": function}


def toolbox(rng: random.Random) -> list[Tool]:
    """One to five tools, many of them under other names."""
    chosen = rng.sample(TOOLS, rng.choice((1, 1, 2, 2, 3, 4)))
    chosen = [renamed(rng, tool) if rng.random() < 0.6 else tool for tool in chosen]
    if rng.random() < 0.35:
        chosen.append(lookup_tool(rng))
    rng.shuffle(chosen)
    return list({tool.name: tool for tool in chosen}.values())


def call(tool: Tool, arguments: Values) -> Message:
    named = {tool.key(slot): value for slot, value in arguments.items()}
    return {"type": "function", "function": {"name": tool.name, "arguments": named}}


def _round(rng: random.Random, tool: Tool, all_values: list[Values], asked: str) -> Exchange:
    messages: Exchange = [{"role": "user", "content": asked}]
    calls = [call(tool, values) for values in all_values]
    messages.append({"role": "assistant", "content": None, "tool_calls": calls})
    told = []
    for values in all_values:
        result = tool.result(rng)
        shown = {**values, **result} if rng.random() < 0.4 else result
        messages.append({"role": "tool", "content": as_json(shown)})
        told.append(tool.told.format(**{**values, **result}))
    return [*messages, {"role": "assistant", "content": " ".join(told)}]


def tool_exchange(rng: random.Random, tools: list[Tool]) -> Exchange:
    """A question for one of the tools. At times it stops at the call, at times there are two."""
    tool = rng.choice(tools)
    if tool.types.keys() == {"city"} and rng.random() < 0.15:
        both = [tool.arguments(rng), tool.arguments(rng)]
        asked = rng.choice(tool.asked[:3]).format(city=f"{both[0]['city']} and {both[1]['city']}")
        return _round(rng, tool, both, asked)
    values = tool.arguments(rng)
    asked = rng.choice(tool.asked).format(**values)
    if rng.random() < 0.1:
        asked = asked.rstrip("?.")
    messages = _round(rng, tool, [values], asked)
    return messages if rng.random() < 0.6 else messages[:2]


def missing_tool(rng: random.Random) -> Exchange:
    """The same questions where no tool is at hand."""
    tool = rng.choice(TOOLS)
    asked = rng.choice(tool.asked).format(**tool.arguments(rng))
    answer = "I can't look that up, because I have no tool for it."
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
