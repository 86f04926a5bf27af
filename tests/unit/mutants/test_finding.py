"""Which mistakes are offered for a piece of code."""

from __future__ import annotations

import pytest

from tests.mutants.drawing import draw_numbers
from tests.mutants.scope import ROOT, Scope, equivalents, mutants_of


def _changed(path: str, source: str) -> set[str]:
    return {mutant.applied_to(source) for mutant in mutants_of(path, source)}


@pytest.mark.parametrize(
    ("code", "mistake"),
    [
        ("a < b", "a <= b"),
        ("now < self._due_at", "now > self._due_at"),
        ("time.monotonic() >= b", "time.monotonic() <= b"),
        ("a is None", "a is not None"),
        ("a and b", "a or b"),
        ("a and b", "a"),
        ("not a", "(a)"),
        ("a[:b]", "a[:]"),
        ("a + 1", "a + 2"),
        ("1 if a else 2", "1 if False else 2"),
    ],
)
def test_expressions(code: str, mistake: str) -> None:
    changed = _changed("x.py", f"def f():\n    return {code}\n")

    assert any(text.split("return", 1)[-1].strip() == mistake for text in changed), changed


def test_statements_are_dropped_and_results_become_none() -> None:
    changed = _changed("x.py", "def f(self):\n    go()\n    self.a = b\n    return b\n")

    assert "def f(self):\n    pass\n    self.a = b\n    return b\n" in changed
    assert "def f(self):\n    go()\n    pass\n    return b\n" in changed
    assert "def f(self):\n    go()\n    self.a = b\n    return None\n" in changed


@pytest.mark.parametrize(
    ("sql", "mistake"),
    [
        ("SELECT a FROM t WHERE b AND c = 'x'", "SELECT a FROM t WHERE b "),
        ("SELECT a FROM t WHERE b AND c = 'x'", "SELECT a FROM t WHERE true AND c = 'x'"),
        ("SELECT a FROM t WHERE b AND c = 'x'", "SELECT a FROM t WHERE b AND c <> 'x'"),
        ("SELECT a FROM t WHERE a <= b", "SELECT a FROM t WHERE a < b"),
        ("SELECT a FROM t WHERE a <= now()", "SELECT a FROM t WHERE a >= now()"),
        ("SELECT a FROM t FOR UPDATE SKIP LOCKED", "SELECT a FROM t"),
        ("SELECT a FROM t WHERE b IS NULL", "SELECT a FROM t WHERE b IS NOT NULL"),
        ("SELECT a FROM t ORDER BY t.a, b", "SELECT a FROM t ORDER BY t.a DESC, b"),
        ("SELECT a FROM t ORDER BY a LIMIT 1", "SELECT a FROM t ORDER BY a DESC LIMIT 1"),
        ("SELECT a FROM t ORDER BY a DESC LIMIT 1", "SELECT a FROM t ORDER BY a ASC LIMIT 1"),
    ],
)
def test_sql_in_strings(sql: str, mistake: str) -> None:
    assert f'Q = "{mistake}"\n' in _changed("x.py", f'Q = "{sql}"\n')


def test_what_only_states_a_truth_is_left_alone() -> None:
    code = "def f(a, b):\n    assert a\n    del b\n"
    changed = _changed("x.py", f"{code}    g(zip(a, b, strict=True), daemon=True)\n")

    assert changed == {f"{code}    pass\n"}


def test_between_keeps_its_and() -> None:
    assert not _changed("x.py", 'Q = "SELECT a FROM t WHERE a BETWEEN 1 AND 2"\n') & {
        'Q = "SELECT a FROM t WHERE a BETWEEN 1 "\n'
    }


def test_lua() -> None:
    changed = _changed("x.lua", "if a < b then return 1 end -- a < b\n")

    assert "if a <= b then return 1 end -- a < b\n" in changed
    assert "if false then return 1 end -- a < b\n" in changed


def test_what_only_observes_and_settings_are_left_alone() -> None:
    source = "LIMIT = 2\n\ndef f(a: int = 7) -> None:\n    log.info('x', n=1)\n    assert a < 9\n"

    assert _changed("x.py", source) == set()


def test_every_pattern_of_the_scope_finds_files() -> None:
    scope = Scope.read()

    assert {path.split("/")[0] for path in scope.sources} == {
        "api",
        "billing",
        "store",
        "tasks",
        "workers",
    }
    assert all((ROOT / test).exists() for tests in scope.processes.values() for test in tests)


def test_every_equivalent_is_still_offered() -> None:
    """One whose line was changed has to be judged anew."""
    offered = {path: _offered(path) for path in {known.path for known in equivalents()}}

    for known in equivalents():
        assert (known.before, known.after) in offered[known.path], known


def _offered(path: str) -> set[tuple[str, str]]:
    source = (ROOT / path).read_text()
    return {mutant.lines(source) for mutant in mutants_of(path, source)}


def test_code_that_has_not_changed_keeps_its_mistakes() -> None:
    code = "def f(a):\n    return a < 1\n\n\ndef g(a):\n    return a < 1\n"
    drawn = dict(draw_numbers("x.py", code, 1))

    later = dict(draw_numbers("x.py", f"def new(b):\n    return b + 1\n\n\n{code}", 1))

    assert drawn.keys() < later.keys()
    assert len(drawn) == len(mutants_of("x.py", code)), "the same line twice is two"
    assert not drawn.keys() & dict(draw_numbers("x.py", code, 2)).keys()
    assert not drawn.keys() & dict(draw_numbers("y.py", code, 1)).keys()
