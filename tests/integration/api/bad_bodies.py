"""Bodies that no client should send: name -> (body, status, code)."""

from __future__ import annotations

import json
from typing import Any

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
SECRET = "sesame-open"  # in prompts; must never come back


def chat(**fields: Any) -> bytes:
    return json.dumps(CHAT | fields).encode()


def content(text: str) -> bytes:
    return b'{"model":"tiny","messages":[{"role":"user","content":"%b"}]}' % text.encode()


def _schema(schema: dict[str, Any]) -> bytes:
    json_schema = {"name": "answer", "schema": schema}
    return chat(response_format={"type": "json_schema", "json_schema": json_schema})


def _schema_text(schema: str) -> bytes:
    return chat(structured_outputs={"json": schema})


# 4 to the power of 9 ways to combine them; and a few bytes that keep a compiler busy for minutes.
EXPONENTIAL: dict[str, Any] = {
    "allOf": [{"anyOf": [{"properties": {f"{i}.{j}": {}}} for j in range(4)]} for i in range(9)]
}
ENDLESS: dict[str, Any] = {
    "allOf": [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 40)]
}

# No text satisfies it that ends.
RECURSIVE: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"$ref": "#"}},
    "required": ["a"],
    "additionalProperties": False,
}

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NO_TOOL = {"type": "function", "function": {"name": "leap"}}

BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "invalid_request"),
    "not JSON": (b"{", 400, "invalid_request"),
    "not an object": (b"[]", 400, "invalid_request"),
    "byte order mark": (b"\xef\xbb\xbf" + chat(), 400, "invalid_request"),
    "invalid UTF-8": (b'{"model":"\xff"}', 400, "invalid_request"),
    "NUL character": (content("a\\u0000b"), 400, "invalid_request"),
    "NUL in a key": (b'{"a\\u0000":1}', 400, "invalid_request"),
    "lone surrogate": (content("\\ud800"), 400, "invalid_request"),
    "NaN": (b'{"model":"tiny","prompt":"a","temperature":NaN}', 400, "invalid_request"),
    "Infinity": (b'{"model":"tiny","prompt":"a","top_p":Infinity}', 400, "invalid_request"),
    "1e999": (b'{"model":"tiny","prompt":"a","top_p":1e999}', 400, "invalid_request"),
    "5,000 digits": (b'{"model":"tiny","seed":' + b"9" * 5000 + b"}", 400, "invalid_request"),
    "25 digits": (chat(seed=10**24), 400, "invalid_request"),
    "seed beyond 64 bits": (chat(seed=2**63), 400, "invalid_request"),
    "deep": (b'{"a":' + b"[" * 100_000, 400, "invalid_request"),
    "33 levels": (b'{"a":' * 33 + b"1" + b"}" * 33, 400, "invalid_request"),
    "many values": (b'{"a":[' + b"1," * 60_000 + b"1]}", 400, "invalid_request"),
    "penalty near 0": (chat(repetition_penalty=5e-324), 400, "invalid_request"),
    "unknown field": (chat(tenant_id="x"), 400, "unsupported_parameter"),
    "unknown field in a message": (
        b'{"model":"tiny","messages":[{"role":"user","content":"a","x":1}]}',
        400,
        "unsupported_parameter",
    ),
    "no model": (b'{"prompt":"a"}', 400, "invalid_request"),
    "unknown model": (chat(model="gpt-9"), 404, "model_not_found"),
    "control characters in the model": (chat(model="ti\nny"), 404, "model_not_found"),
    "model of another type": (chat(model=7), 400, "invalid_request"),
    "no prompt": (b'{"model":"tiny"}', 400, "invalid_request"),
    "empty prompt": (b'{"model":"tiny","prompt":""}', 400, "invalid_request"),
    "prompt of token ids": (chat(messages=None, prompt=[1, -1, 10**9]), 400, "invalid_request"),
    "both prompts": (chat(prompt="a"), 400, "invalid_request"),
    "empty messages": (chat(messages=[]), 400, "invalid_request"),
    "unknown role": (
        chat(messages=[{"role": SECRET, "content": "a"}]),
        400,
        "invalid_request",
    ),
    "role the template refuses": (
        chat(messages=[{"role": "developer", "content": SECRET}]),
        400,
        "invalid_prompt",
    ),
    "image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "text": SECRET}]}]),
        400,
        "invalid_request",
    ),
    "negative temperature": (chat(temperature=-0.1), 400, "invalid_request"),
    "negative NaN": (b'{"model":"tiny","prompt":"a","temperature":-NaN}', 400, "invalid_request"),
    "-1e999": (b'{"model":"tiny","prompt":"a","logit_bias":{"1":-1e999}}', 400, "invalid_request"),
    "hot": (chat(temperature=2.1), 400, "invalid_request"),
    "boolean for a number": (chat(temperature=True), 400, "invalid_request"),
    "text for a number": (chat(max_tokens="7"), 400, "invalid_request"),
    "no tokens": (chat(max_tokens=0), 400, "invalid_request"),
    "negative tokens": (chat(max_tokens=-1), 400, "invalid_request"),
    "tokens beyond 32 bits": (chat(max_completion_tokens=2**31), 400, "invalid_request"),
    "two limits": (chat(max_tokens=1, max_output_tokens=1), 400, "invalid_request"),
    "more than the model gives": (chat(max_tokens=129), 400, "invalid_request"),
    "more than the context": (
        b'{"model":"tiny","max_tokens":128,"prompt":"%b"}' % (b"xyz " * 60),
        400,
        "context_length_exceeded",
    ),
    "prompt beyond the context": (content("q" * 3_000), 400, "context_length_exceeded"),
    "prompt far beyond it": (content("q" * 900_000), 400, "context_length_exceeded"),
    "five stops": (chat(stop=list("abcde")), 400, "invalid_request"),
    "long stop": (chat(stop=SECRET * 10), 400, "invalid_request"),
    "much bias": (chat(logit_bias={str(i): 1 for i in range(301)}), 400, "invalid_request"),
    "bias beyond the vocabulary": (chat(logit_bias={"99999": 1}), 400, "invalid_request"),
    "huge bias": (chat(logit_bias={"1": 100.5}), 400, "invalid_request"),
    "bias beyond any": (chat(logit_bias={"1": 1e308}), 400, "invalid_request"),
    "bias on a word": (chat(logit_bias={SECRET: 1}), 400, "invalid_request"),
    "bias on a negative id": (chat(logit_bias={"-1": 1}), 400, "invalid_request"),
    "stop id beyond the vocabulary": (chat(stop_token_ids=[99_999]), 400, "invalid_request"),
    "negative stop id": (chat(stop_token_ids=[-1]), 400, "invalid_request"),
    "many stop ids": (chat(stop_token_ids=[1] * 65), 400, "invalid_request"),
    "minimum beyond the limit": (chat(min_tokens=9, max_tokens=8), 400, "invalid_request"),
    "negative minimum": (chat(min_tokens=-1), 400, "invalid_request"),
    "much metadata": (chat(metadata={str(i): "" for i in range(17)}), 400, "invalid_request"),
    "long metadata": (chat(metadata={"a": "b" * 513}), 400, "invalid_request"),
    "n": (chat(n=9), 400, "invalid_request"),
    "top_logprobs": (chat(logprobs=True, top_logprobs=21), 400, "invalid_request"),
    "top_logprobs alone": (chat(top_logprobs=3), 400, "invalid_request"),
    "tool without function": (chat(tools=[{"type": "function"}]), 400, "invalid_request"),
    "tools of a model without": (chat(tools=[TOOL]), 400, "unsupported_parameter"),
    "two tools of a name": (chat(tools=[TOOL, TOOL]), 400, "invalid_request"),
    "choice of no tool": (chat(tools=[TOOL], tool_choice=NO_TOOL), 400, "invalid_request"),
    "stream": (chat(stream=True), 400, "unsupported_parameter"),
    "tier": (chat(service_tier="gold"), 400, "invalid_request"),
    "deadline": (chat(deadline_s=0), 400, "invalid_request"),
    "too large": (content("q" * (1 << 20)), 413, "request_too_large"),
    "10 MB": (content("q" * 10_000_000), 413, "request_too_large"),
    "unknown format": (chat(response_format={"type": SECRET}), 400, "invalid_request"),
    "format without its schema": (
        chat(response_format={"type": "json_schema"}),
        400,
        "invalid_request",
    ),
    "two forms of output": (
        chat(response_format={"type": "json_object"}, structured_outputs={"regex": "a"}),
        400,
        "invalid_request",
    ),
    "no form of output": (chat(structured_outputs={}), 400, "invalid_request"),
    "NUL in a schema": (
        b'{"model":"tiny","prompt":"a","structured_outputs":{"json":{"const":"\\u0000"}}}',
        400,
        "invalid_request",
    ),
    "lone surrogate in a schema's text": (
        chat(structured_outputs={"json": '{"const":"\\ud800"}'}),
        400,
        "invalid_request",
    ),
    "invalid UTF-8 in a regex": (
        b'{"model":"tiny","prompt":"a","structured_outputs":{"regex":"\xff"}}',
        400,
        "invalid_request",
    ),
    "unsupported keyword": (_schema({"uniqueItems": True}), 400, "invalid_grammar"),
    "unsatisfiable schema": (_schema({"enum": []}), 400, "invalid_grammar"),
    "schema without an end": (_schema(RECURSIVE), 400, "invalid_grammar"),
    "parameters without an end": (
        chat(
            tools=[{"type": "function", "function": {"name": "look", "parameters": RECURSIVE}}],
            tool_choice="required",
        ),
        400,
        "invalid_grammar",
    ),
    "remote reference": (_schema({"$ref": f"http://{SECRET}/a"}), 400, "invalid_grammar"),
    "deep schema": (_schema_text('{"items":' * 40 + "{}" + "}" * 40), 400, "invalid_grammar"),
    "exponential schema": (_schema(EXPONENTIAL), 400, "invalid_grammar"),
    "schema of endless work": (_schema(ENDLESS), 400, "invalid_grammar"),
    "bad regex": (chat(structured_outputs={"regex": f"{SECRET}("}), 400, "invalid_grammar"),
    "bad pattern": (_schema({"type": "string", "pattern": "[a"}), 400, "invalid_grammar"),
    "bad grammar": (chat(structured_outputs={"grammar": "start: ("}), 400, "invalid_grammar"),
    "grammar without a start": (
        chat(structured_outputs={"grammar": f'a: "{SECRET}"'}),
        400,
        "invalid_grammar",
    ),
}
