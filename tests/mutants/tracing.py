"""A pytest plugin: which functions of ours each test calls, how long it takes, whether it passes.

It sees all threads of the test process, and no other process.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest


class Tracing:
    """Writes its findings to a file at the end of the session."""

    def __init__(self, root: Path, output: Path) -> None:
        self._root = f"{root}/"
        self._output = output
        self._seen: dict[int, CodeType] = {}  # by id: hashing a code object is slow
        self._tests: dict[str, dict[str, object]] = {}
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.perf_counter()
        self._seen.clear()
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        result = yield
        sys.settrace(None)
        threading.settrace(None)
        self._tests[item.nodeid] = {
            "seconds": time.perf_counter() - began,
            "functions": self._functions(),
        }
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        passed = {name: test for name, test in self._tests.items() if name not in self._failed}
        self._output.write_text(json.dumps({"tests": passed, "failed": sorted(self._failed)}))

    def _on_call(self, frame: FrameType, _event: str, _argument: object) -> None:
        """Called for each call of a Python function; None means: not for its lines."""
        code = frame.f_code
        if id(code) not in self._seen:
            self._seen[id(code)] = code

    def _functions(self) -> list[str]:
        return sorted(
            f"{code.co_filename.removeprefix(self._root)}:{code.co_qualname}"
            for code in list(self._seen.values())
            if code.co_filename.startswith(self._root) and not code.co_name.startswith("<")
        )
