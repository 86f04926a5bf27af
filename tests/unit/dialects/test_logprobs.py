"""Which tokens the answers of text completions list, where they stand, and under which names."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer, decoders, models

from api.dialects.chat import ChatFold, chat_completion
from api.dialects.completion import CompletionFold, text_completion
from api.dialects.fold import Fold, ShownJob
from api.dialects.response import ResponseFold, response_object
from api.json_pieces import LaterList
from api.prompts.vocabulary import Vocabulary
from tasks.events import Event, EventType, make_event
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.unit.dialects.test_chat import shown_job

MARKS = ("<|end|>", "<|begin|>")
TOKENIZER = tiny_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER, json.loads(TOKENIZER.to_str()))
END, BEGIN = (TOKENIZER.encode(mark, add_special_tokens=False).ids[0] for mark in MARKS)
# Each byte of a character that is no ASCII is a token.
EURO = TOKENIZER.encode("€", add_special_tokens=False).ids
NAMES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
Steps = list[tuple[str, list[int]]]  # the text and the tokens of each event


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return found


def values(token_ids: list[int], top: Any = ()) -> list[Any]:
    return [[-0.1 * (1 + at), list(top)] for at in range(len(token_ids))]


def job(steps: Steps, *, finish: str = "stop", **request: Any) -> ShownJob:
    """A finished job with log-probabilities."""
    shown = shown_job(["".join(text for text, _ in steps)], **{"logprobs": 0} | request)
    token_ids = [token_id for _, of_step in steps for token_id in of_step]
    stored = {"token_ids": token_ids, "values": values(token_ids)}
    shown.row["output"][0] |= {"logprobs": stored, "finish_reason": finish}
    shown.row.update(is_stored=True, is_background=False, metadata={}, finished_at=None)
    return ShownJob(shown.row, shown.request, VOCABULARY)


def events(steps: Steps) -> list[Event]:
    made, at = [make_event(1, EventType.STARTED, attempt=1)], 0
    all_values = values([token_id for _, of_step in steps for token_id in of_step])
    for seq, (text, token_ids) in enumerate(steps, start=2):
        of_step = all_values[at : at + len(token_ids)]
        at += len(token_ids)
        fields = {"index": 0, "text": text, "token_ids": token_ids, "logprobs": of_step}
        made.append(make_event(seq, EventType.TOKEN, **fields))
    return made


def chunks(fold: Fold, made: list[Event], shown: ShownJob) -> list[dict[str, Any]]:
    frames = [*fold.begin(), *(frame for event in made for frame in fold.feed(event))]
    frames += fold.finish(99, shown.row)
    parsed = [orjson.loads(f.data) for f in frames if isinstance(f.data, bytes)]
    return [chunk for chunk in parsed if isinstance(chunk, dict)]


def streamed(shown: ShownJob, made: list[Event]) -> tuple[str, dict[str, list[Any]]]:
    """The text and the lists that a stream adds up to."""
    text = ""
    lists: dict[str, list[Any]] = {name: [] for name in NAMES}
    for chunk in chunks(CompletionFold(shown), made, shown):
        [choice] = chunk["choices"]
        text += choice["text"]
        for name in NAMES if choice["logprobs"] else ():
            lists[name] += choice["logprobs"][name]
    return text, lists


STOPPED: list[tuple[Steps, list[str], list[int]]] = [
    ([("h", ids("h")), ("i", ids("i")), ("", [END])], ["h", "i"], [0, 1]),
    # An ordinary token that ends the text, as one of stop_token_ids does.
    ([("h", ids("h")), ("", ids("i"))], ["h"], [0]),
    # A stop string "bc" within tokens: the last is cut off, one that was held back comes out.
    ([("a", ids("a")), ("", ids("b")), ("bx", ids("x")), ("", ids("b")), ("", ids("c"))],
     ["a", "b", "x"], [0, 1, 2]),
    # A character of three tokens, then one behind it.
    ([("", EURO[:2]), ("€", EURO[2:]), ("h", ids("h"))],
     [r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "h"], [0, 0, 0, 1]),
    # Half a character that nothing completes, in the middle and at the end.
    ([("", EURO[:1]), ("\ufffdh", ids("h")), ("", EURO[:2]), ("\ufffd", [END])],
     [r"bytes:\xe2", "h", r"bytes:\xe2", r"bytes:\x82"], [0, 1, 2, 2]),
    # A control token that stands for nothing, where the model goes on behind it.
    ([("h", ids("h")), ("", [END]), ("i", ids("i"))], ["h", "i"], [0, 1]),
    ([("", [END])], [], []),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "tokens", "offsets"), STOPPED)
def test_listed_is_what_the_text_holds_in_a_stream_as_in_the_whole(
    steps: Steps, tokens: list[str], offsets: list[int]
) -> None:
    shown = job(steps)

    [choice] = text_completion(shown)["choices"]
    text, lists = streamed(shown, events(steps))

    assert choice["logprobs"]["tokens"] == tokens
    assert choice["logprobs"]["text_offset"] == offsets
    assert {len(choice["logprobs"][name]) for name in NAMES} == {len(tokens)}
    assert (text, lists) == (choice["text"], choice["logprobs"])


@pytest.mark.parametrize(("steps", "tokens", "offsets"), STOPPED)
def test_chat_and_responses_list_the_same_tokens(
    steps: Steps, tokens: list[str], offsets: list[int]
) -> None:
    shown = job(steps)

    whole = chat_completion(shown)["choices"][0]["logprobs"]["content"]
    told = [chunk["choices"][0] for chunk in chunks(ChatFold(shown), events(steps), shown)]
    parts = [part for item in response_object(shown)["output"] for part in item["content"]]
    deltas = chunks(ResponseFold(shown), events(steps), shown)

    assert len(whole) == len(tokens)
    assert [entry for c in told if c["logprobs"] for entry in c["logprobs"]["content"]] == whole
    assert [entry for part in parts for entry in part["logprobs"]] == whole
    assert [
        entry
        for event in deltas
        if event.get("type") == "response.output_text.delta"
        for entry in event["logprobs"]
    ] == whole


def test_the_drawn_token_is_among_the_likeliest_and_none_hides_another() -> None:
    steps = [("h", ids("h"))]
    shown = job(steps)
    others = [[EURO[0], -1.0], [EURO[1], -2.0], [END, -3.0], [ids("i")[0], -4.0]]
    shown.row["output"][0]["logprobs"]["values"] = [[-5.0, others]]

    [choice] = text_completion(shown)["choices"]

    assert choice["logprobs"]["top_logprobs"] == [
        {"h": -5.0, r"bytes:\xe2": -1.0, r"bytes:\x82": -2.0, "<|end|>": -3.0, "i": -4.0}
    ]


def test_tokens_that_say_the_same_are_told_apart_by_their_ids() -> None:
    shown = job([("h", ids("h"))])
    shown.row["output"][0]["logprobs"]["values"] = [[-5.0, [[9_998, -1.0], [9_999, -2.0]]]]

    [choice] = text_completion(shown)["choices"]

    assert choice["logprobs"]["top_logprobs"] == [{"h": -5.0, "": -1.0, "token_id:9999": -2.0}]


def test_a_space_that_the_text_lost_moves_no_offset() -> None:
    vocabulary = {"\u2581a": 0, "\u2581b": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="\u2581a"))
    tokenizer.decoder = decoders.Metaspace()
    steps: Steps = [("a", [0]), (" b", [1])]
    shown = job(steps)
    words = Vocabulary(tokenizer, json.loads(tokenizer.to_str()))
    shown = ShownJob(shown.row, shown.request, words)

    [choice] = text_completion(shown)["choices"]

    assert choice["text"] == "a b"
    assert choice["logprobs"]["text_offset"] == [0, 1]
    assert streamed(shown, events(steps))[1] == choice["logprobs"]


# With the prompt in front.

PROMPT = "€ hi"
PROMPT_IDS = ids(PROMPT)


def echoed(steps: Steps, prompt: Any, prompt_ids: list[int], **request: Any) -> ShownJob:
    shown = job(steps, prompt=prompt, echo=True, **request)
    scored = {"token_ids": prompt_ids, "values": prompt_values(prompt_ids)}
    shown.row["output"][0]["prompt_logprobs"] = scored
    return shown


def prompt_values(prompt_ids: list[int]) -> list[Any]:
    return [[None, []], *values(prompt_ids[1:], [[END, -9.0]])]


def prompt_events(prompt_ids: list[int], *, each: int = 2) -> list[Event]:
    made = [make_event(1, EventType.STARTED, attempt=1)]
    scores = prompt_values(prompt_ids)
    for start in range(0, len(prompt_ids), each):
        part = slice(start, start + each)
        fields = {"start": start, "total": len(prompt_ids), "token_ids": prompt_ids[part]}
        made.append(
            make_event(len(made) + 1, EventType.PROMPT, index=0, **fields, logprobs=scores[part])
        )
    return made


def tokens_behind(made: list[Event], steps: Steps) -> list[Event]:
    last = made[-1].seq
    behind = events(steps)[1:]
    return [*made, *(event._replace(seq=last + at) for at, event in enumerate(behind, start=1))]


STEPS: Steps = [("!", ids("!")), ("", [END])]
FRAMED = [BEGIN, *PROMPT_IDS]  # as a tokenizer may put a mark before a text


@pytest.mark.parametrize(
    ("prompt", "prompt_ids", "text"),
    [
        (PROMPT, PROMPT_IDS, PROMPT),
        (PROMPT, FRAMED, PROMPT),
        (PROMPT_IDS, PROMPT_IDS, PROMPT),
        ([FRAMED], FRAMED, "<|begin|>" + PROMPT),
    ],
)
def test_an_echoed_prompt_is_listed_before_what_was_drawn(
    prompt: Any, prompt_ids: list[int], text: str
) -> None:
    shown = echoed(STEPS, prompt, prompt_ids)

    [choice] = text_completion(shown)["choices"]
    made = tokens_behind(prompt_events(prompt_ids), STEPS)
    whole, lists = streamed(shown, made)

    listed = choice["logprobs"]
    assert choice["text"] == text + "!"
    # Harnesses count tokens from either end: each one has its place, the end too.
    assert {len(listed[name]) for name in NAMES} == {len(prompt_ids) + 2}
    assert listed["tokens"][-2:] == ["!", ""]
    assert listed["text_offset"][-2:] == [len(text), len(text) + 1]
    assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
    assert listed["top_logprobs"][1] == {listed["tokens"][1]: -0.1, "<|end|>": -9.0}
    said = [t.encode() if not t.startswith("bytes:") else b"" for t in listed["tokens"]]
    assert b"".join(said).decode() == choice["text"].replace("€", "")
    assert (whole, lists) == (choice["text"], listed)


def test_an_echoed_prompt_of_ids_without_log_probabilities() -> None:
    shown = job([("!", ids("!"))], prompt=FRAMED, echo=True, logprobs=None)
    shown.row["output"][0]["logprobs"] = None

    [choice] = text_completion(shown)["choices"]
    made = [make_event(1, EventType.STARTED), make_event(2, EventType.TOKEN, index=0, text="!")]

    assert choice["text"] == "<|begin|>" + PROMPT + "!"
    assert choice["logprobs"] is None
    assert streamed(shown, made)[0] == choice["text"]


def test_an_attempt_that_scores_again_doubles_nothing() -> None:
    shown = echoed(STEPS, PROMPT, PROMPT_IDS)
    made = prompt_events(PROMPT_IDS)
    again = prompt_events(PROMPT_IDS, each=3)[1:]
    made = [*made[:2], *(event._replace(seq=3 + at) for at, event in enumerate(again))]

    text, lists = streamed(shown, tokens_behind(made, STEPS))

    assert (text, lists) == (PROMPT + "!", text_completion(shown)["choices"][0]["logprobs"])


def test_behind_a_gap_the_prompt_is_told_without_its_log_probabilities() -> None:
    shown = echoed(STEPS, PROMPT, PROMPT_IDS)
    made = prompt_events(PROMPT_IDS)[:2]
    made.append(make_event(50, EventType.GAP, **{"from": 1, "to": 50, "text": "!"}))
    late = prompt_events(PROMPT_IDS)[1:]

    text, lists = streamed(
        shown, [*made, *(event._replace(seq=51 + at) for at, event in enumerate(late))]
    )

    assert text == PROMPT + "!"
    assert len(lists["tokens"]) == 2


def test_a_prompt_whose_scores_are_incomplete_has_none() -> None:
    shown = echoed(STEPS, PROMPT, PROMPT_IDS)
    shown.row["output"][0]["prompt_logprobs"] = None

    [choice] = text_completion(shown)["choices"]
    text, _ = streamed(shown, prompt_events(PROMPT_IDS)[:2])

    assert (choice["text"], choice["logprobs"]) == (PROMPT + "!", None)
    assert text == PROMPT


def test_an_echo_that_is_read_later_is_the_same() -> None:
    shown = echoed(STEPS, PROMPT, PROMPT_IDS)
    [at_once] = text_completion(shown)["choices"]
    stored = dict(shown.row["output"][0])
    shown.row["output"][0] |= {"logprobs": True, "prompt_logprobs": True}

    [later] = text_completion(shown)["choices"]

    for name, found in later["logprobs"].items():
        assert isinstance(found, LaterList)
        for _ in range(2):  # as often as it is sent
            entries = [
                entry
                for part in found.parts
                for held in [stored["prompt_logprobs" if part.is_prompt else "logprobs"]]
                for entry in part.entries()(held["token_ids"], held["values"])
            ]
            assert entries == at_once["logprobs"][name]


# Several prompts.


def test_each_choice_stands_behind_its_own_prompt() -> None:
    shown = shown_job(["a", "b", "c", "d"], prompt=["x: ", "y: "], echo=True)
    shown = ShownJob(shown.row, shown.request, VOCABULARY)

    texts = [choice["text"] for choice in text_completion(shown)["choices"]]
    [first, *_] = chunks(CompletionFold(shown), [make_event(1, EventType.STARTED)], shown)

    assert texts == ["x: a", "x: b", "y: c", "y: d"]
    assert [c["text"] for c in first["choices"]] == ["x: ", "x: ", "y: ", "y: "]
