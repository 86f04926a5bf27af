from __future__ import annotations

import re

import pytest

from store.api_keys import (
    ALL,
    ALL_SCOPES,
    CRC_LENGTH,
    KEY_ID_LENGTH,
    KEY_LENGTH,
    PREFIX,
    SECRET_LENGTH,
    _checksum,
    generate,
    hash_key,
    parse_key_id,
    shown_scopes,
    stored_scopes,
)


def test_key_has_the_documented_form_and_names_its_id() -> None:
    key = generate()

    assert re.fullmatch(r"mlr_live_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", key.text)
    assert len(key.text) == KEY_LENGTH
    assert parse_key_id(key.text) == key.key_id
    assert key.last4 == key.text[-4:]


def test_any_changed_character_breaks_the_checksum() -> None:
    text = generate().text

    for index in range(len("mlr_live_"), len(text)):
        other = "0" if text[index] != "0" else "1"
        assert parse_key_id(text[:index] + other + text[index + 1 :]) is None


def test_noise_is_no_key() -> None:
    for text in ("", "x", "mlr_live_", "mlr_live_" + "0" * 62, "é" * KEY_LENGTH):
        assert parse_key_id(text) is None


def test_hash_depends_on_key_and_pepper() -> None:
    one, two = generate().text, generate().text

    assert len({hash_key(b"a", one), hash_key(b"b", one), hash_key(b"a", two)}) == 3
    assert len(hash_key(b"a", one)) == 32


@pytest.mark.parametrize("where", [len(PREFIX), len(PREFIX) + KEY_ID_LENGTH + 1])
def test_a_key_with_a_character_that_is_none_of_ours_is_none(where: int) -> None:
    body = generate().text[:-CRC_LENGTH]
    body = f"{body[:where]}-{body[where + 1 :]}"

    assert parse_key_id(body + _checksum(body)) is None


@pytest.mark.parametrize(
    "body",
    [
        f"mlr_test_{'a' * KEY_ID_LENGTH}_{'b' * SECRET_LENGTH}",
        f"{PREFIX}{'a' * KEY_ID_LENGTH}_{'b' * (SECRET_LENGTH + 1)}",
        f"{PREFIX}{'a' * (KEY_ID_LENGTH + 1)}_{'b' * (SECRET_LENGTH - 1)}",
        f"{PREFIX}{'a' * (KEY_ID_LENGTH + 1 + SECRET_LENGTH)}",
    ],
)
def test_a_text_of_another_form_is_no_key_though_its_checksum_is_right(body: str) -> None:
    assert parse_key_id(body + _checksum(body)) is None


def test_keys_that_were_given_out_stay_good() -> None:
    """Their checksums are CRC-32 in six digits of base 62."""
    assert (_checksum("mlr_live_x"), _checksum("")) == ("3mWG3S", "000000")


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (["jobs:read"], ("jobs:read",)),
        (["usage:read", "infer:write", "usage:read"], ("infer:write", "usage:read")),
        (["jobs:read", "all"], ("all",)),
        (list(ALL_SCOPES), tuple(ALL_SCOPES)),
    ],
)
def test_scopes_are_shown_as_they_were_chosen(chosen: list[str], shown: tuple[str, ...]) -> None:
    assert shown_scopes(stored_scopes(chosen)) == shown


def test_all_is_stored_beside_the_scopes_that_an_earlier_release_knows() -> None:
    assert stored_scopes([ALL]) == [*(scope.value for scope in ALL_SCOPES), ALL]
