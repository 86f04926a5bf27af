"""A stop string is cut out whole, however the text arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.inference.engine.detokenizer import StopMatcher

PIECES = st.lists(st.text("ab", max_size=4), max_size=12)


def feed(matcher: StopMatcher, pieces: list[str]) -> str:
    text = ""
    for piece in pieces:
        text += matcher.push(piece)
        if matcher.is_stopped:
            return text
    return text + matcher.flush()


def test_stop_string_split_over_pieces_is_not_leaked() -> None:
    matcher = StopMatcher(["END"])

    texts = [matcher.push(piece) for piece in ("one E", "N", "D two")]

    assert texts == ["one ", "", ""]
    assert matcher.is_stopped


def test_held_text_comes_out_when_it_turns_out_harmless() -> None:
    matcher = StopMatcher(["END"])

    texts = [matcher.push(piece) for piece in ("E", "N", "ough")]

    assert texts == ["", "", "ENough"]


def test_held_text_comes_out_at_the_end() -> None:
    assert feed(StopMatcher(["END"]), ["the EN"]) == "the EN"


def test_earliest_of_several_stop_strings_wins() -> None:
    assert feed(StopMatcher(["cd", "b"]), ["abcd"]) == "a"


@given(pieces=PIECES, stop=st.text("ab", min_size=1, max_size=3))
def test_text_is_cut_at_the_first_occurrence_for_any_pieces(pieces: list[str], stop: str) -> None:
    matcher = StopMatcher([stop])

    text = feed(matcher, pieces)

    before, found, _ = "".join(pieces).partition(stop)
    assert text == before
    assert matcher.is_stopped == bool(found)


@given(pieces=PIECES, stops=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
def test_no_stop_string_is_ever_said(pieces: list[str], stops: list[str]) -> None:
    matcher, text, said = StopMatcher(stops), "", ""

    for piece in pieces:
        text += piece
        said += matcher.push(piece)
        if found := [text.index(stop) for stop in stops if stop in text]:
            assert (said, matcher.is_stopped) == (text[: min(found)], True)
            return
        assert (said, matcher.is_stopped) == (text[: len(text) - num_open(text, stops)], False)
    assert said + matcher.flush() == text


def num_open(text: str, stops: list[str]) -> int:
    """Length of the longest end of a text that may yet become one of the stop strings."""
    begins = [stop[:n] for stop in stops for n in range(1, len(stop))]
    return max((len(begin) for begin in begins if text.endswith(begin)), default=0)


def test_text_is_held_back_for_every_stop_string() -> None:
    for stops in (["x", "END"], ["END", "x"]):
        matcher = StopMatcher(stops)

        texts = [matcher.push(piece) for piece in ("one E", "ND")]

        assert texts == ["one ", ""]
        assert matcher.is_stopped
