"""The routes whose bodies the lines of a batch may have: how each is read and shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.dialects.chat import chat_completion
from api.dialects.completion import text_completion
from api.dialects.fold import ShownJob
from api.dialects.response import response_object
from api.generation import Generation
from api.references import references_in
from api.schemas.chat import PATH as CHAT
from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import PATH as COMPLETIONS
from api.schemas.completions import CreateCompletion
from api.schemas.responses import PATH as RESPONSES
from api.schemas.responses import CreateResponse
from api.submitting import parse_body
from tasks.errors import UnsupportedParameter


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route."""

    schema: type[CreateChatCompletion | CreateCompletion | CreateResponse]
    show: Callable[[ShownJob], dict[str, Any]]

    def generation(self, body: dict[str, Any]) -> Generation:
        """Of a line's body. Raises InvalidRequest and its like."""
        parsed = parse_body(self.schema, body)
        if parsed.stream:
            raise UnsupportedParameter("Lines of a batch are not streamed.", param="stream")
        if isinstance(parsed, CreateResponse) and parsed.previous_response_id is not None:
            message = "Lines of a batch stand alone."
            raise UnsupportedParameter(message, param="previous_response_id")
        if isinstance(parsed, CreateResponse) and any(references_in(parsed.input)):
            message = "Lines of a batch stand alone: give the items themselves."
            raise UnsupportedParameter(message, param="input")
        return parsed.generation()


ENDPOINTS = {
    CHAT: Endpoint(CreateChatCompletion, chat_completion),
    COMPLETIONS: Endpoint(CreateCompletion, text_completion),
    RESPONSES: Endpoint(CreateResponse, response_object),
}
