"""What the tests ask for."""

from __future__ import annotations

from typing import Any

MODEL = "demo"
QUESTION: list[Any] = [{"role": "user", "content": "What is a service tier?"}]
# Answered differently each time when warm: the model knows many beginnings.
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]
WEATHER_QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
