"""The tree of errors and the drawing of it."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tasks import errors
from tasks.errors import ServiceError


def subclasses(parent: type[ServiceError]) -> list[type[ServiceError]]:
    return [c for child in parent.__subclasses__() for c in (child, *subclasses(child))]


ALL = subclasses(ServiceError)


def drawn_tree() -> dict[str, str]:
    """Class name -> parent's name, as the module's docstring draws them."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"((?:│   )*)[├└]── (\w+)", line)
        if drawn:
            depth = len(drawn[1]) // 4
            path[depth:] = [drawn[2]]
            parents[drawn[2]] = path[depth - 1] if depth else "ServiceError"
    return parents


def test_drawing_shows_every_class_under_its_parent() -> None:
    assert drawn_tree() == {c.__name__: c.__bases__[0].__name__ for c in ALL}


def test_codes_are_distinct_or_the_parents() -> None:
    counts = Counter(error.code for error in ALL if "code" in vars(error))

    assert [code for code, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("error", ALL)
def test_docstring_is_the_message(error: type[ServiceError]) -> None:
    raised = error()

    assert str(raised) == raised.message == error.__doc__
    assert raised.param is None


def test_own_message_and_parameter_are_kept() -> None:
    raised = errors.InvalidRequest("max_tokens is too large", param="max_tokens")

    assert (str(raised), raised.param) == ("max_tokens is too large", "max_tokens")


def test_only_errors_that_may_pass_are_retryable() -> None:
    assert {error.__name__ for error in ALL if error.retryable} == {
        "RateLimitExceeded",
        "RequestTimeout",
        "TokenLimitExceeded",
        "EngineFailed",
        "WorkerLost",
        "DeadlineExceeded",
        "ServiceUnavailable",
        "InternalError",
    }
