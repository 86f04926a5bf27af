"""Which files are changed, which tests are tried, which mistakes are known to change nothing."""

from __future__ import annotations

import subprocess
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.python_code import PythonMutants
from tests.mutants.sql_and_lua import lua_mutants, sql_mutants

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Scope:
    """The contents of scope.toml, applied to the files of the repository."""

    sources: list[str]
    traced: list[str]
    processes: dict[str, list[str]]

    @classmethod
    def read(cls) -> Scope:
        table = tomllib.loads((_FOLDER / "scope.toml").read_text())
        files = repository_files()
        sources = _matching(files, table["mutated"], table["left_out"])
        traced = _matching(files, table["traced"], table["untraced"])
        return cls(sources, traced, table["processes"])

    def process_tests(self, path: str) -> list[str]:
        """Files of tests that run this code in processes of its own."""
        found = (tests for prefix, tests in self.processes.items() if path.startswith(prefix))
        return [test for tests in found for test in tests]


def repository_files() -> list[str]:
    """All that git knows or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in output.splitlines() if (ROOT / name).is_file())


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Every mistake that one file offers, in the order of the text."""
    if path.endswith(".lua"):
        return sorted(lua_mutants(path, source))
    in_sql = [m for m in sql_mutants(path, source) if _compiles(m.applied_to(source))]
    return sorted(set(in_sql + PythonMutants(path, source).all()))


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A mistake that changes nothing anybody could notice."""

    path: str
    before: str
    after: str
    reason: str


def equivalents() -> list[Equivalent]:
    table = tomllib.loads((_FOLDER / "equivalents.toml").read_text())
    return [Equivalent(**entry) for entry in table.get("equivalent", [])]


def _matching(files: list[str], wanted: list[str], unwanted: list[str]) -> list[str]:
    return [
        name
        for name in files
        if any(_is_match(name, pattern) for pattern in wanted)
        and not any(_is_match(name, pattern) for pattern in unwanted)
    ]


def _is_match(name: str, pattern: str) -> bool:
    """* doesn't cross a slash, except at the end of a folder's pattern."""
    return fnmatch(name, pattern) and (
        pattern.endswith("/*") or name.count("/") == pattern.count("/")
    )


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True
