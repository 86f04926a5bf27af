"""The training text is complete, and the same seed writes it again."""

import random

import pytest

from models.demo.corpus import conversations, facts, sums, tools, words


def test_every_fact_has_six_questions_and_an_answer() -> None:
    all_facts = facts.facts()

    assert len(all_facts) >= 120
    assert min(len(set(fact.questions)) for fact in all_facts) >= 6
    assert all(fact.answers for fact in all_facts)


def test_no_two_facts_share_a_question() -> None:
    asked = [question for fact in facts.facts() for question in set(fact.questions)]

    assert len(asked) == len(set(asked))


def test_same_seed_makes_the_same_conversation() -> None:
    first = conversations.conversation(random.Random(7), 2_000)
    second = conversations.conversation(random.Random(7), 2_000)

    assert first == second


def test_tool_calls_stand_only_where_the_tool_is_listed() -> None:
    rng = random.Random(3)

    for _ in range(500):
        made = conversations.conversation(rng, 500)
        listed = {tool["function"]["name"] for tool in made.tools}
        calls = [c for message in made.messages for c in message.get("tool_calls", ())]
        assert {call["function"]["name"] for call in calls} <= listed


def test_lookup_tool_told_of_a_noun_that_is_also_the_field_of_its_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "made_up", lambda _: "State")

    for seed in range(100):
        rng = random.Random(seed)
        tool = tools.lookup_tool(rng)
        assert "state" not in tool.types
        assert tools.tool_exchange(rng, [tool])[0]["role"] == "user"


def test_numbers_in_words() -> None:
    assert [sums.in_words(n) for n in (0, 13, 40, 99, 120)] == [
        "zero", "thirteen", "forty", "ninety-nine", "one hundred and twenty",
    ]  # fmt: skip
