"""Trying mistakes: each against the tests that can notice it, several at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from tests.mutants.choosing import Chooser
from tests.mutants.laboratory import Laboratory, Run
from tests.mutants.mutant import Mutant
from tests.mutants.scope import ROOT, Equivalent, Scope

# A mistake may make tests slower before it makes them fail; one that hangs is noticed by this.
_START_S = 30.0
_TIMES_SLOWER = 4.0
_PROCESS_TESTS_S = 300.0

_Item = TypeVar("_Item")


class Verdict(StrEnum):
    """How a mistake ended."""

    NOTICED = "noticed"
    EXPLAINED = "explained"  # it changes nothing; equivalents.toml says why
    SURVIVED = "survived"
    NOT_RUN = "not run"  # no test runs the code; counts as survived


@dataclass(frozen=True, slots=True)
class Trial:
    """One mistake and what became of it."""

    mutant: Mutant
    verdict: Verdict
    seconds: float = 0.0
    by: str = ""  # the test that failed, or the reason


class Trials:
    """What one mistake needs to be tried."""

    def __init__(self, scope: Scope, chooser: Chooser, known: Sequence[Equivalent]) -> None:
        self._scope = scope
        self._chooser = chooser
        self._known = {(entry.path, entry.before, entry.after): entry for entry in known}

    def explained(self, mutant: Mutant) -> Trial | None:
        before, after = mutant.lines((ROOT / mutant.path).read_text())
        if entry := self._known.get((mutant.path, before, after)):
            return Trial(mutant, Verdict.EXPLAINED, by=entry.reason)
        return None

    def run(self, laboratory: Laboratory, mutant: Mutant) -> Trial:
        if explained := self.explained(mutant):
            return explained
        with laboratory.changed(mutant):
            return self._run_tests(laboratory, mutant)

    def _run_tests(self, laboratory: Laboratory, mutant: Mutant) -> Trial:
        choice = self._chooser.choose(mutant)
        seconds = 0.0
        if choice.files:
            limit_s = _START_S + _TIMES_SLOWER * choice.seconds
            run = laboratory.run(choice.files, tests=choice.tests, limit_s=limit_s)
            seconds += run.seconds
            if _is_noticed(run):
                return _noticed(mutant, run, seconds)
        others = self._scope.process_tests(mutant.path)
        for file in others:
            run = laboratory.run([file], limit_s=_PROCESS_TESTS_S)
            seconds += run.seconds
            if _is_noticed(run):
                return _noticed(mutant, run, seconds)
        ran = choice.files or others
        return Trial(mutant, Verdict.SURVIVED if ran else Verdict.NOT_RUN, seconds)


def spread(
    laboratories: Sequence[Laboratory],
    items: Sequence[_Item],
    work: Callable[[Laboratory, _Item], None],
) -> None:
    """Give each laboratory the next item until none is left. The first error ends all."""
    waiting: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    errors: list[BaseException] = []

    def serve(laboratory: Laboratory) -> None:
        try:
            while not errors:
                work(laboratory, waiting.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:  # a thread's boundary: the caller raises it
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(each,), daemon=True) for each in laboratories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _is_noticed(run: Run) -> bool:
    """Failed, broken (on import, at the end), killed by a signal, or too slow."""
    if run.code in (4, 5):  # nothing that it was asked for
        raise RuntimeError(f"pytest could not run the tests chosen:\n{run.output}")
    return run.code != 0


def _noticed(mutant: Mutant, run: Run, seconds: float) -> Trial:
    by = run.first_failure or ("time-out" if run.code is None else "broken")
    return Trial(mutant, Verdict.NOTICED, seconds, by)
