"""What each test calls: found by one run of the suite, and kept for each file of tests until that
file, or what tests share, changes.

The code under test may change in between: functions are known by their names, and a function that
no test was seen calling falls back on all tests of its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.mutants.choosing import Test
from tests.mutants.laboratory import Laboratory
from tests.mutants.scope import ROOT, repository_files

_KEPT = ROOT / ".mutants"
_FILES_A_RUN = 3  # a run that is broken off loses no more
_LIMIT_S = 900.0

Progress = Callable[[str], None]
Spread = Callable[[Sequence[tuple[str, ...]], Callable[[Laboratory, tuple[str, ...]], None]], None]


def traced_tests(files: Sequence[str], spread: Spread, progress: Progress) -> list[Test]:
    """Trace these files of tests, but for what an earlier run found of the same files."""
    _KEPT.mkdir(exist_ok=True)
    shared = _digest(name for name in repository_files() if _is_shared(name))
    kept = {name: _KEPT / f"{_digest([name], shared)}.json" for name in files}
    for old in set(_KEPT.iterdir()) - set(kept.values()):
        old.unlink()
    missing = [name for name in files if not kept[name].exists()]
    if missing:
        progress(f"tracing {len(missing)} files of tests, once until they change")
        runs = [
            tuple(missing[at : at + _FILES_A_RUN]) for at in range(0, len(missing), _FILES_A_RUN)
        ]
        spread(runs, lambda place, run: _trace(place, run, kept, progress))
    return [test for path in kept.values() for test in _read(path)]


def _trace(
    place: Laboratory, files: Sequence[str], kept: dict[str, Path], progress: Progress
) -> None:
    partial = kept[files[0]].with_suffix(".partial")
    ended = place.run(files, limit_s=_LIMIT_S, trace=partial)
    if not partial.exists():
        raise RuntimeError(f"tests of {' '.join(files)} could not run:\n{ended.output}")
    report = json.loads(partial.read_text())
    for name in report["failed"]:
        progress(f"left out, since it fails without a mistake: {name}")
    partial.unlink()
    for file in files:
        tests = {n: test for n, test in report["tests"].items() if n.startswith(f"{file}::")}
        kept[file].write_text(json.dumps(tests))
    progress(f"traced {len(report['tests'])} tests in {ended.seconds:.0f} s")


def _read(path: Path) -> list[Test]:
    return [Test(name=name, **test) for name, test in json.loads(path.read_text()).items()]


def _is_shared(name: str) -> bool:
    is_test = Path(name).name.startswith("test_") or name.startswith("tests/mutants/")
    return name.startswith("tests/") and name.endswith(".py") and not is_test


def _digest(files: Iterable[str], seed: str = "") -> str:
    digest = hashlib.sha256(seed.encode())
    for name in files:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()[:20]
