"""Equal digests mean equal tokens under an equal root."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engine.requests import running_request
from workers.inference.engine.page_digests import extend_page_digests
from workers.inference.engine.request import Request


def hashed(*, is_private: bool = False, **fields: Any) -> list[bytes]:
    request = running_request(**{"prompt_token_ids": [5, 6, 7, 8, 9]} | fields)
    return extend(request, is_private=is_private)


def extend(request: Request, *, is_private: bool = False) -> list[bytes]:
    extend_page_digests(request, 2, is_private=is_private)
    return request.page_digests


def test_only_full_pages_are_hashed() -> None:
    assert len(hashed()) == 2


def test_digest_names_everything_before_its_page() -> None:
    first, second = hashed()
    other_first, other_second = hashed(prompt_token_ids=[5, 9, 7, 8])

    assert {first, second}.isdisjoint({other_first, other_second})


def test_common_beginning_has_common_digests() -> None:
    assert hashed(prompt_token_ids=[5, 6, 9, 9])[0] == hashed()[0]


def test_digests_grow_with_the_tokens_as_if_hashed_at_once() -> None:
    request = running_request(prompt_token_ids=[5, 6, 7])
    extend(request)
    request.token_ids += [8, 9]

    assert extend(request) == hashed()


@pytest.mark.parametrize("other", [{"cache_salt": "other"}, {"model": "other"}])
def test_another_salt_or_model_has_no_digest_in_common(other: dict[str, Any]) -> None:
    assert set(hashed(cache_salt="one")).isdisjoint(hashed(**{"cache_salt": "one"} | other))


def test_private_digests_are_common_to_the_choices_of_one_request_only() -> None:
    first, second = (hashed(is_private=True, n=2, index=index) for index in (0, 1))
    others = hashed(is_private=True, n=2, request_id="other")
    salted = hashed(cache_salt="r")

    assert first == second
    assert set(first).isdisjoint(others + salted)


def test_request_that_shares_with_nobody_is_not_hashed() -> None:
    assert hashed(is_private=True) == []
