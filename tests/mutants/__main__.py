"""`make mutants`: makes small mistakes in the code, one at a time, and sees whether a test notices.

Mistakes are drawn by a seed from all that the files in scope.toml offer: nearly the same ones again
after a change of the code, so that runs before and after it can be compared. Each is made in a copy
of the repository and tried against the tests that run its function.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.mutants.choosing import Chooser
from tests.mutants.drawing import draw_numbers
from tests.mutants.laboratory import Laboratory
from tests.mutants.mutant import Mutant
from tests.mutants.scope import ROOT, Scope, equivalents, repository_files
from tests.mutants.traces import traced_tests
from tests.mutants.trials import Trial, Trials, Verdict, spread

_DEFAULT_JOBS = 2
_CALLERS = ("api/", "billing/", "cli/", "store/", "tasks/", "workers/")


def main() -> None:
    options = _options()
    scope = Scope.read()
    mutants = _draw(scope, options)
    if options.list:
        for mutant in mutants:
            _say(_shown(mutant))
        return
    began = time.monotonic()
    trials = _try_all(scope, mutants, num_jobs=options.jobs)
    _report(trials, time.monotonic() - began)
    if options.json:
        print(json.dumps(_summary(trials, options, time.monotonic() - began)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--num", type=int, default=150, help="mistakes to try (150)")
    parser.add_argument("--seed", type=int, default=1, help="draws others (1)")
    parser.add_argument("--jobs", type=int, default=_DEFAULT_JOBS, help="at a time (2)")
    parser.add_argument("--only", default="", help="of files whose path begins so")
    parser.add_argument("--list", action="store_true", help="show the mistakes, try none")
    parser.add_argument("--json", action="store_true", help="results as JSON on the last line")
    return parser.parse_args()


def _draw(scope: Scope, options: argparse.Namespace) -> list[Mutant]:
    paths = [path for path in scope.sources if path.startswith(options.only)]
    offered = {
        drawn: mutant
        for path in paths
        for drawn, mutant in draw_numbers(path, (ROOT / path).read_text(), options.seed)
    }
    _say(f"{len(offered)} mistakes in {len(paths)} files, seed {options.seed}")
    return [offered[drawn] for drawn in sorted(offered)[: options.num]]


def _try_all(scope: Scope, mutants: Sequence[Mutant], *, num_jobs: int) -> list[Trial]:
    done: list[Trial] = []
    files = repository_files()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="millrace-mutants-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        laboratories = [
            stack.enter_context(Laboratory(folder / str(number), files))
            for number in range(num_jobs)
        ]
        tests = traced_tests(scope.traced, partial(spread, laboratories), _say)
        callers = [name for name in files if name.startswith(_CALLERS) and name.endswith(".py")]
        trials = Trials(scope, Chooser(ROOT, callers, tests), equivalents())

        def work(laboratory: Laboratory, mutant: Mutant) -> None:
            done.append(trials.run(laboratory, mutant))
            _say(f"[{len(done)}/{len(mutants)}] {_line(done[-1])}")

        spread(laboratories, mutants, work)
    return done


def _report(trials: Sequence[Trial], seconds: float) -> None:
    survivors = [trial for trial in trials if not _is_accounted_for(trial)]
    for trial in sorted(survivors, key=lambda trial: trial.mutant):
        _say(f"\n{trial.verdict}: {_shown(trial.mutant)}")
    share = 1 - len(survivors) / max(1, len(trials))
    counts = {verdict: sum(trial.verdict is verdict for trial in trials) for verdict in Verdict}
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    _say(f"\n{words}: {share:.0%} noticed or explained, in {seconds / 60:.0f} minutes")


def _summary(
    trials: Sequence[Trial], options: argparse.Namespace, seconds: float
) -> dict[str, object]:
    survivors = [trial for trial in trials if not _is_accounted_for(trial)]
    counts = {verdict.name.lower(): 0 for verdict in Verdict}
    for trial in trials:
        counts[trial.verdict.name.lower()] += 1
    return {
        "num": len(trials),
        "seed": options.seed,
        **counts,
        "noticed_or_explained": round(1 - len(survivors) / max(1, len(trials)), 4),
        "seconds": round(seconds),
        "survivors": [_described(trial.mutant) for trial in survivors],
    }


def _is_accounted_for(trial: Trial) -> bool:
    return trial.verdict in (Verdict.NOTICED, Verdict.EXPLAINED)


def _line(trial: Trial) -> str:
    return f"{trial.verdict}  {_described(trial.mutant)}  {trial.seconds:.1f} s  {trial.by}"


def _shown(mutant: Mutant) -> str:
    before, after = mutant.lines((ROOT / mutant.path).read_text())
    return f"{_described(mutant)}\n  - {before}\n  + {after}"


def _described(mutant: Mutant) -> str:
    return f"{mutant.path}:{mutant.line} {mutant.kind}"


def _say(text: str) -> None:
    """To people; stdout is for --json."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
