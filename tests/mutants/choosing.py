"""Which tests can notice a mistake: those that were seen calling the function it stands in.

A name at the top level of a module, such as a statement of SQL, runs nowhere itself: it stands for
the functions that speak of it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant

# One mistake that nobody notices would otherwise run most of the suite, if its function is common.
_MAX_SECONDS = 60.0
_MAX_ABOUT_IT_SECONDS = 150.0  # of tests that import its module


@dataclass(frozen=True, slots=True)
class Function:
    """One function and its place."""

    name: str  # path:qualified name
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def first_line(self) -> int:
        return min([self.node.lineno, *(each.lineno for each in self.node.decorator_list)])

    def holds(self, line: int) -> bool:
        return self.first_line <= line <= (self.node.end_lineno or 0)


@dataclass(frozen=True, slots=True)
class Test:
    """One test that passes, and what it calls."""

    name: str
    seconds: float
    functions: Sequence[str]

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]


@dataclass(frozen=True, slots=True)
class Choice:
    """Tests of some files: first those that import the module with the mistake, the fastest first.

    A function that all need is called by hundreds of tests, and few of them are about it.
    """

    files: list[str]
    tests: list[str]
    seconds: float


class Chooser:
    """Knows all functions of the packages and the tests that call them."""

    def __init__(self, root: Path, paths: Iterable[str], tests: Iterable[Test]) -> None:
        self._tests_of: dict[str, list[Test]] = defaultdict(list)
        for test in tests:
            for function in test.functions:
                self._tests_of[function].append(test)
        self._functions: dict[str, list[Function]] = {}  # of a file
        self._trees: dict[str, ast.Module] = {}
        self._users: dict[str, set[str]] = defaultdict(set)  # of an identifier
        self._root = root
        self._imports: dict[str, set[str]] = {}  # modules, of a file of tests
        for path in paths:
            self._learn(path, ast.parse((root / path).read_text()))

    def choose(self, mutant: Mutant) -> Choice:
        functions = self._functions_of(mutant)
        tests = {test.name: test for name in functions for test in self._tests_of.get(name, [])}
        return self._chosen(mutant, tests.values())

    def _chosen(self, mutant: Mutant, tests: Iterable[Test]) -> Choice:
        module = mutant.path.removesuffix(".py").replace("/", ".")
        by_file: dict[str, list[Test]] = defaultdict(list)
        for test in tests:
            by_file[test.file].append(test)

        def is_about_it(file: str) -> bool:
            return module in self._imported(file)

        def rank(file: str) -> tuple[bool, float]:
            return not is_about_it(file), _seconds(by_file[file])

        chosen: list[Test] = []
        files: list[str] = []
        for file in sorted(by_file, key=rank):
            most = _MAX_ABOUT_IT_SECONDS if is_about_it(file) else _MAX_SECONDS
            room = most - _seconds(chosen)
            if room <= 0 and files:
                break
            files.append(file)
            for test in sorted(by_file[file], key=lambda test: test.seconds):
                if test.seconds <= room or not chosen:
                    chosen.append(test)
                    room -= test.seconds
        return Choice(files, [test.name for test in chosen], _seconds(chosen))

    def _imported(self, file: str) -> set[str]:
        """Modules, and names of modules, that may be modules too."""
        if file not in self._imports:
            path = self._root / file
            tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
            self._imports[file] = set(_imports(tree))
        return self._imports[file]

    def _functions_of(self, mutant: Mutant) -> set[str]:
        if mutant.path.endswith(".lua"):
            return self._users_of({Path(mutant.path).name})
        around = [each for each in self._functions[mutant.path] if each.holds(mutant.line)]
        if around:
            found = {max(around, key=lambda each: each.first_line).name}
        else:
            found = self._users_of(_names_at(self._trees[mutant.path], mutant.line))
        return (found & self._tests_of.keys()) or self._all_of(mutant.path)

    def _users_of(self, names: set[str]) -> set[str]:
        """Functions that speak of these names, or of a constant that does."""
        found: set[str] = set()
        seen: set[str] = set()
        while names:
            name = names.pop()
            seen.add(name)
            for user in self._users.get(name, ()):
                if user.startswith("="):
                    names |= {user[1:]} - seen
                else:
                    found.add(user)
        return found

    def _all_of(self, path: str) -> set[str]:
        return {name for name in self._tests_of if name.startswith(f"{path}:")}

    def _learn(self, path: str, tree: ast.Module) -> None:
        """Who speaks of an identifier: a function by its name, a constant as `=NAME`."""
        self._trees[path] = tree
        self._functions[path] = list(_functions(path, tree, ""))
        for function in self._functions[path]:
            for name in _identifiers(function.node):
                self._users[name].add(function.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for target in _targets(node.body):  # a field is known by its class as well
                    self._users[target].add(f"={node.name}")
        for statement in tree.body:
            for target in _targets([statement]):
                for name in _identifiers(statement) - {target}:
                    self._users[name].add(f"={target}")


def _functions(path: str, tree: ast.AST, prefix: str) -> Iterator[Function]:
    """All of a file, by the names that Python gives them."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{getattr(node, 'name', '')}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(f"{path}:{name}", node)
            yield from _functions(path, node, f"{name}.<locals>.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(path, node, f"{name}.")
        else:
            yield from _functions(path, node, prefix)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _seconds(tests: Iterable[Test]) -> float:
    return sum(test.seconds for test in tests)


def _names_at(tree: ast.Module, line: int) -> set[str]:
    """What the statement at this line assigns; of a class, the field at it."""
    for node in tree.body:
        if node.lineno <= line <= (node.end_lineno or 0):
            if isinstance(node, ast.ClassDef):
                return _names_at(ast.Module(node.body, []), line) or {node.name}
            return set(_targets([node]))
    return set()


def _targets(body: Sequence[ast.stmt]) -> list[str]:
    found: list[str] = []
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def _identifiers(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # the file of a Lua script
    return found
