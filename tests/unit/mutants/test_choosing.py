from __future__ import annotations

from pathlib import Path

from tests.mutants import choosing
from tests.mutants.choosing import Chooser
from tests.mutants.choosing import Test as Traced
from tests.mutants.mutant import Mutant

_MUTANT = Mutant("store/claims.py", 0, 1, "", "condition", 2)


def _chooser(root: Path, tests: list[Traced]) -> Chooser:
    (root / "store").mkdir()
    (root / "store/claims.py").write_text("def claim():\n    return 1\n")
    (root / "test_far.py").write_text("from tests.support import jobs\n")
    (root / "test_near.py").write_text("from store import claims\n")
    (root / "test_nearest.py").write_text("from store.claims import claim\n")
    return Chooser(root, ["store/claims.py"], tests)


def _test(file: str, seconds: float) -> Traced:
    return Traced(f"{file}::test_x", seconds, ["store/claims.py:claim"])


def test_files_that_import_the_module_come_first_and_the_fastest_of_them(tmp_path: Path) -> None:
    tests = [_test("test_far.py", 0.1), _test("test_near.py", 2.0), _test("test_nearest.py", 1.0)]

    choice = _chooser(tmp_path, tests).choose(_MUTANT)

    assert choice.files == ["test_nearest.py", "test_near.py", "test_far.py"]
    assert choice.tests == [f"{file}::test_x" for file in choice.files]


def test_no_more_is_run_than_there_is_time_for(tmp_path: Path) -> None:
    limit = choosing._MAX_ABOUT_IT_SECONDS
    tests = [_test("test_near.py", 0.9 * limit), _test("test_nearest.py", 0.2 * limit)]
    tests += [_test("test_far.py", choosing._MAX_SECONDS - 0.2 * limit)]
    tests += [_test("test_farther.py", choosing._MAX_SECONDS)]

    choice = _chooser(tmp_path, tests).choose(_MUTANT)

    assert choice.tests == ["test_nearest.py::test_x", "test_far.py::test_x"]
