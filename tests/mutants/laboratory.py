"""One place where tests run against changed code: a copy of the repository, a Postgres and a Redis,
and a warm process. The repository itself is never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.mutants.mutant import Mutant
from tests.mutants.scope import ROOT
from tests.support.services import Services

SERVICES_VARIABLE = "MILLRACE_TEST_SERVICES"


@dataclass(frozen=True, slots=True)
class Run:
    """How some tests ended."""

    code: int | None  # of pytest; None: it took too long
    seconds: float
    output: str

    @property
    def first_failure(self) -> str:
        lines = self.output.splitlines()
        failures = [line for line in lines if line.startswith(("FAILED tests/", "ERROR tests/"))]
        return failures[0].split(" - ")[0] if failures else ""


class Laboratory:
    """Enter it in the main thread: its servers end with the thread that starts them."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self._folder = folder
        self._tree = folder / "tree"
        self._files = files
        self._services = Services(folder / "services")
        self._exit = ExitStack()
        self._runner: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with self._exit:
            self._exit.enter_context(self._services)
            self._services.make_template()
            self._copy()
            self._runner = self._start_runner()
            self._exit.callback(self._stop_runner)
            self._exit = self._exit.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()

    @contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The copy holds the mistake inside the block."""
        path = self._tree / mutant.path
        source = path.read_text()
        path.write_text(mutant.applied_to(source))
        try:
            yield
        finally:
            path.write_text(source)

    def run(
        self,
        files: Sequence[str],
        *,
        tests: Sequence[str] = (),
        limit_s: float,
        trace: Path | None = None,
    ) -> Run:
        """Run these tests of these files, or all of them, up to the first failure."""
        self._services.clear()
        request = {
            "files": list(files),
            "tests": list(tests),
            "limit_s": limit_s,
            "trace": str(trace) if trace else None,
            "output": str(self._folder / "output.txt"),
        }
        return Run(**self._ask(request))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._runner is not None
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.write(json.dumps(request) + "\n")
        self._runner.stdin.flush()
        answer: dict[str, Any] = json.loads(self._runner.stdout.readline())
        return answer

    def _copy(self) -> None:
        """With compiled files that are checked by their source's hash: a mistake changes neither
        a file's size nor its second for sure."""
        for name in self._files:
            target = self._tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        command = [sys.executable, "-m", "compileall", "-q"]
        command += ["--invalidation-mode", "checked-hash", "."]
        subprocess.run(command, cwd=self._tree, check=True)

    def _start_runner(self) -> subprocess.Popen[str]:
        environment = os.environ | {
            SERVICES_VARIABLE: str(self._folder / "services"),
            "PYTHONPATH": str(self._tree),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.runner"],
            cwd=self._tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _stop_runner(self) -> None:
        assert self._runner is not None
        assert self._runner.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._runner.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._runner.wait(timeout=1)
        self._runner.kill()
        self._runner.wait()
