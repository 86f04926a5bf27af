"""Postgres and Redis for tests: real servers of our own, started once, in a temporary folder.

No pytest in here, so that benchmarks can use it too. `tests/conftest.py` makes the fixtures.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg
from psycopg import sql

from cli.stack.database import DatabaseUrls, new_passwords, prepare
from cli.stack.files import write_private
from cli.stack.postgres import OWNER, EmbeddedPostgres
from cli.stack.redis import EmbeddedRedis, system_programs, wheel_program

# Folders of servers are made in the folder that this names, if it is set.
SCRATCH_VARIABLE = "MILLRACE_TEST_SCRATCH"
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 << 30  # what a run keeps there at once, and much to spare

_TEMPLATE = "millrace_template"
_PASSWORDS = "passwords.json"  # of the roles, for who borrows the servers


class Services:
    """One Postgres and one Redis. A context manager: leaving it ends both and deletes their data.

    They also end when the process that started them is killed. Nothing survives a crash of the
    machine (fsync is off), everything survives a kill -9 of Postgres.

    is_borrowed=True: another process started them in this folder, made the template, and ends them.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        redis_program: Path | None = None,
        is_borrowed: bool = False,
    ) -> None:
        self.folder = folder or scratch_folder("millrace-test-")
        self._owns_folder = folder is None
        self._is_borrowed = is_borrowed
        self.postgres = EmbeddedPostgres(self.folder, durable=False, die_with_parent=True)
        self.redis = EmbeddedRedis(
            self.folder, persistent=False, die_with_parent=True, program=redis_program
        )
        self._passwords = self._read_passwords() if is_borrowed else new_passwords()
        self._numbers = itertools.count(1)
        self._has_template = is_borrowed
        self._connection: psycopg.Connection | None = None

    def __enter__(self) -> Self:
        self.postgres.start()
        self.redis.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._is_borrowed:
            return
        self.redis.stop()
        self.postgres.stop()
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def redis_url(self) -> str:
        return self.redis.url

    def empty_database(self) -> str:
        """The owner's URL of a new database without tables, for tests of migrations."""
        return self._create(f"empty_{os.getpid()}_{next(self._numbers)}", template=None)

    def fresh_database(self) -> DatabaseUrls:
        """A new migrated database, copied from a template in some 20 ms, with a URL per role."""
        if not self._has_template:
            self.make_template()
        name = f"fresh_{os.getpid()}_{next(self._numbers)}"
        url = self._create(name, template=_TEMPLATE)
        return DatabaseUrls.with_passwords(url, self._passwords)

    def make_template(self) -> None:
        """Migrate the database that fresh ones are copied from, and let others borrow it."""
        url = self._create(_TEMPLATE, template=None)
        prepare(DatabaseUrls.with_passwords(url, self._passwords), self._passwords)
        write_private(self.folder / _PASSWORDS, json.dumps(self._passwords))
        # The first connection reads the whole catalog and leaves a file for others, copied too.
        psycopg.connect(self.postgres.admin_url(_TEMPLATE)).close()
        self._has_template = True

    def clear(self) -> None:
        """Leave nothing of what borrowers made, ended by a signal perhaps."""
        self.redis.find()  # one that a borrower restarted answers until it notices that this ended
        self.restart_redis_empty()
        query = "SELECT datname FROM pg_database WHERE datname ~ '^(fresh|empty)_'"
        for (name,) in self._admin().execute(query).fetchall():
            self._drop(name)

    def drop_database(self, urls: DatabaseUrls) -> None:
        """Delete a database, whoever is still connected."""
        self._drop(urls.owner.rpartition("/")[2])

    def restart_redis_empty(self) -> None:
        """What a Redis that lost everything looks like: same address, no data."""
        self.redis.stop()
        self.redis.start()

    def _drop(self, name: str) -> None:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._admin().execute(statement.format(sql.Identifier(name)))

    def _read_passwords(self) -> dict[str, str]:
        passwords: dict[str, str] = json.loads((self.folder / _PASSWORDS).read_text())
        return passwords

    def _create(self, name: str, *, template: str | None) -> str:
        statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(
            sql.Identifier(name), sql.Identifier(OWNER)
        )
        if template is not None:
            # Copying files costs a third of writing all pages to the log, which is the default.
            statement += sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template))
        self._admin().execute(statement)
        return self.postgres.url(database=name)

    def _admin(self) -> psycopg.Connection:
        """One connection for all; another once somebody restarted Postgres and it was noticed."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.postgres.admin_url(), autocommit=True)
        return self._connection


def scratch_folder(prefix: str) -> Path:
    """A new folder for servers of tests; whoever makes it deletes it."""
    parent = os.environ.get(SCRATCH_VARIABLE) or None
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


def use_memory() -> None:
    """Keep databases of tests in memory, if it has room: making files costs most on a disk."""
    with contextlib.suppress(OSError):
        _clear_memory()
        if shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES and os.access(_MEMORY, os.W_OK | os.X_OK):
            os.environ.setdefault(SCRATCH_VARIABLE, str(_MEMORY))


def _clear_memory() -> None:
    """Delete what runs left there that were killed."""
    for folder in _MEMORY.glob("millrace-*-*"):
        maker = folder.name.split("-")[2]
        is_ours = folder.is_dir() and folder.stat().st_uid == os.getuid()
        if is_ours and maker.isdecimal() and not psutil.pid_exists(int(maker)):
            shutil.rmtree(folder, ignore_errors=True)


def redis_programs() -> list[Path]:
    """Every Redis at hand: the wheel's, and the system's redis-server and valkey-server."""
    return [wheel_program(), *system_programs()]
