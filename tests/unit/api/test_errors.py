from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from api.errors import STATUS, error_response, invalid_request, status_of
from tasks.errors import (
    InsufficientQuota,
    InvalidPrompt,
    RateLimitExceeded,
    ServiceError,
    ServiceUnavailable,
    TokenLimitTooLow,
)


def _subclasses(cls: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


@pytest.mark.parametrize("cls", list(_subclasses(ServiceError)), ids=lambda cls: cls.__name__)
def test_each_error_has_a_status_of_its_own_line_or_its_parents(cls: type[ServiceError]) -> None:
    assert any(parent in STATUS for parent in cls.__mro__)
    status, type_ = status_of(cls())
    body = orjson.loads(error_response(cls()).body)["error"]
    assert 400 <= status <= 599
    assert (body["type"], body["code"], body["param"]) == (type_, cls.code, None)
    assert (type_ == "server_error") == (status >= 500)


def test_stock_clients_are_told_when_to_retry() -> None:
    assert error_response(InsufficientQuota()).headers["x-should-retry"] == "false"
    assert error_response(TokenLimitTooLow()).headers["x-should-retry"] == "false"
    assert error_response(RateLimitExceeded()).headers["retry-after"] == "1"
    assert error_response(ServiceUnavailable()).headers["retry-after"] == "1"
    assert "retry-after" not in error_response(InvalidPrompt()).headers


def test_an_error_may_know_better_when_to_retry_than_its_class() -> None:
    error = RateLimitExceeded()
    error.headers = {"Retry-After": "7"}

    assert error_response(error).headers["retry-after"] == "7"


def test_invalid_input_is_named_but_not_echoed() -> None:
    class Body(BaseModel):
        model_config = ConfigDict(strict=True)
        inner: dict[str, int]

    with pytest.raises(ValidationError) as raised:
        Body.model_validate({"inner": {"a": "secret words"}})
    error = invalid_request(raised.value)

    assert error.param == "inner.a"
    assert "secret" not in error.message
