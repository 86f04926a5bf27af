"""For schemathesis: random bodies that fit the document become requests that can be served.

Untouched, nearly all would end at a model that doesn't exist or at a rule between fields, and no
job would ever run. Bodies that don't fit the document stay as they are: they are to be refused.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import schemathesis

from api.app import app

MAX_TOKENS = 16
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CREATES = {
    "/v1/jobs": "CreateJob",
    "/v1/chat/completions": "CreateChatCompletion",
    "/v1/completions": "CreateCompletion",
}
# Fields that depend on others, on the model, or are refused with any value of their type.
_DELICATE = (
    *("structured_outputs", "response_format", "tools", "tool_choice", "top_logprobs"),
    *("stream_options", "logit_bias", "suffix", "best_of", "modalities", "audio", "functions"),
    *("function_call", "web_search_options", "reasoning_effort", "verbosity", "echo"),
    *("min_tokens", "service_tier", *_LIMITS),
)


def _validator(name: str) -> Any:
    document = app.openapi()
    root = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(root)


_VALIDATORS = {path: _validator(name) for path, name in _CREATES.items()}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Of the bodies that fit, every fourth gets no more than a model that exists."""
    validator = _VALIDATORS.get(context.operation.path)
    if validator is None or not isinstance(body, dict) or not validator.is_valid(body):
        return body
    body = {**body, "model": "demo"}
    if len(json.dumps(body, default=str)) % 4 == 0:
        return body
    return _servable(body, context.operation.path)


def _list_parameters() -> frozenset[str]:
    """Names of query parameters that are lists of texts."""
    operations = [one for path in app.openapi()["paths"].values() for one in path.values()]
    return frozenset(
        parameter["name"]
        for operation in operations
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
        and any(form.get("type") == "array" for form in parameter["schema"].get("anyOf", ()))
    )


_LISTS = _list_parameters()


@schemathesis.hook
def filter_query(context: Any, query: Any) -> bool:
    """Leave out what is wrong in JSON alone: in a query `a=1` is a list of one text."""
    lists = [value for name, value in (query or {}).items() if name in _LISTS]
    return all(isinstance(value, list) and _are_texts(value) for value in lists)


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _servable(body: dict[str, Any], path: str) -> dict[str, Any]:
    body = {name: value for name, value in body.items() if name not in _DELICATE}
    if "messages" in body or path != "/v1/completions":
        body["messages"] = _messages(body.get("messages")) or [{"role": "user", "content": "hi"}]
    if path == "/v1/jobs":
        body.pop("prompt", None)
        body.pop("stream", None)
    return {**body, "max_tokens": MAX_TOKENS}


def _messages(messages: Any) -> list[dict[str, Any]]:
    return [
        {"role": message["role"], "content": message["content"]}
        for message in messages or ()
        if message["role"] in ("system", "user", "assistant") and message.get("content")
    ]
