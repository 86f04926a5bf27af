"""The largest bodies that routes may be sent, legal or not: a mistake may cost as much to find. No
pytest in here: benchmarks use it too.
"""

from __future__ import annotations

import json
from typing import Any

_WORDS = "word " * 200_000  # just under a MiB, as all bodies here
_PARTS = [{"role": "user", "content": [{"type": "text", "text": "x"}] * 250} for _ in range(39)]
_TURNS = [{"role": "user", "content": "many words " * 30} for _ in range(2_048)]
_STRANGERS = [{"role": "user", "content": "x"} | {f"k{n}": n for n in range(9)}] * 2_000
_ARGUMENTS = json.dumps({"a": list(range(8_000))})
_CALLS = [{"role": "assistant", "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": _ARGUMENTS}}
    for _ in range(18)
]}, {"role": "user", "content": "x"}]  # fmt: skip
_CALL_ITEMS = [
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": _ARGUMENTS}
    for _ in range(18)
]
_SCHEMA = {
    "type": "object",
    "properties": {f"property_{n}": {"type": "string", "maxLength": 9} for n in range(3_000)},
}
_TOOLS = [
    {"type": "function", "function": {"name": f"f{n}", "description": "d" * 5_000, "parameters": {
        "type": "object", "properties": {f"p{m}": {"type": "string"} for m in range(40)}}}}
    for n in range(128)
]  # fmt: skip
UPLOAD_TYPE = "multipart/form-data; boundary=b"


def bodies_of(path: str, model_name: str) -> dict[str, Any]:
    """What a route may be sent, by a name each: JSON, or bytes as they are."""
    model = {"model": model_name}
    is_response = path.startswith("/v1/responses")
    text, turns = ("input", "input") if is_response else ("prompt", "messages")
    short = {**model, text: "x"}
    unknown = {f"unknown_{n}": n for n in range(23_000)}
    chats: dict[str, Any] = {
        "turns": _TURNS,
        "parts": _PARTS,
        "calls": _CALL_ITEMS if is_response else _CALLS,
        "a control token": [{"role": "user", "content": "<|end|>"}, *_TURNS[1:]],
        "mistakes": [{"role": "user", "content": 7}] * 9_000,
        "unknown inside": [{"role": "user", "content": "x", **unknown}],
        "unknown everywhere": _STRANGERS,
    }
    bodies: dict[str, Any] = {name: {**model, turns: chat} for name, chat in chats.items()} | {
        "words": {**model, text: _WORDS},
        "words of a chat": {**model, turns: [{"role": "user", "content": _WORDS}]},
        "escapes": {**model, text: "\\u0000 " * 100_000},
        "control tokens": {**model, text: "<|end|>" * 140_000},
        "beginnings of control tokens": {**model, text: "<|" * 250_000},
        "token ids": {**model, "prompt": [n % 200 + 10 for n in range(49_000)]},
        "tools": {**model, turns: _TURNS[:1], "tools": _TOOLS, "tool_choice": "required"},
        "schema": {**short, "structured_outputs": {"json": _SCHEMA}},
        "bias": {**short, "logit_bias": {str(n + 10): 1.0 for n in range(300)}},
        "biases": {**short, "logit_bias": {f"x{n}": "x" for n in range(20_000)}},
        "stops": {**short, "stop": [7] * 40_000},
        "unknown": {**short, **unknown},
        "nested": {**short, "unknown": _nested()},
        "long name": {**short, "model": _WORDS},
        "metadata": {**short, "metadata": {f"k{n}": "v" for n in range(20_000)}},
    }
    return bodies | {
        "broken": b"[" + b"1," * 500_000,
        "too many values": b'{"a":[' + b"[],{}," * 160_000 + b"1]}",
    }


def upload() -> bytes:
    """A form with a file."""
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return head + file + b"x" * (32 << 20) + b"\r\n--b--\r\n"


def _nested() -> Any:
    """As deep as may be, and as wide as may be there."""
    value: Any = list(range(40_000))
    for _ in range(28):
        value = {"a": value}
    return value
