"""The embedded Postgres: initdb and postgres of the wheel, run by ourselves.

It listens on 127.0.0.1 only, has no Unix socket, and takes passwords only (scram-sha-256).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from cli.stack import ports
from cli.stack.child import Child, spawn, start_moment, tail
from cli.stack.errors import StackError
from cli.stack.files import read_json, write_private
from cli.stack.postgres_home import PostgresHome, find_home

OWNER = "millrace_owner"
DATABASE = "millrace"
_ADMIN = "millrace_admin"  # superuser; no process of the platform logs in as it
_START_TIMEOUT_S = 60.0  # crash recovery of a large log may take long
_STOP_TIMEOUT_S = 20.0  # a fast shutdown writes a checkpoint
_NUM_TRIES = 5  # other processes may take the port between our choice and the bind


class EmbeddedPostgres:
    """One Postgres server of one state folder. `start` and `stop` may be called twice.

    durable=False trades safety for speed, for tests: a crash of the machine (not of the process)
    may lose data. die_with_parent=True ends the server with the process that started it.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int | None = None,
        *,
        durable: bool = True,
        die_with_parent: bool = False,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._wanted_port = port
        self._durable = durable
        self._die_with_parent = die_with_parent
        self._settings_path = self._state_dir / "postgres.json"
        self._child: Child | None = None
        self.log_path = self._state_dir / "logs" / "postgres.log"

    @property
    def child(self) -> Child | None:
        """The postmaster, ours or found from an earlier run."""
        return self._child if self._child and self._child.is_alive else None

    @property
    def port(self) -> int:
        return int(self._settings()["port"])

    def url(self, role: str = OWNER, password: str | None = None, database: str = DATABASE) -> str:
        """The URL of a role; the owner's password is known here, other roles' is their maker's."""
        secret = password or self._settings()["owner_password"]
        return f"postgresql://{role}:{secret}@127.0.0.1:{self.port}/{database}"

    def admin_url(self, database: str = "postgres") -> str:
        """The superuser's, for this module and for tests that copy databases."""
        return self.url(_ADMIN, self._settings()["admin_password"], database)

    def start(self) -> None:
        """Start it, or adopt the one that an earlier run left, and wait until it answers."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = find_home(self._state_dir)
        if self._adopt(home):
            return
        if not (home.data / "PG_VERSION").exists():
            self._create_cluster(home)
        self._clear_leftovers(home)
        for _ in range(1 if self._wanted_port else _NUM_TRIES):
            if self._try_start(home):
                self._ensure_owner()
                return
        raise StackError(f"Postgres does not start, see {self.log_path}:\n{tail(self.log_path)}")

    def stop(self) -> None:
        """A fast shutdown: open transactions are rolled back, all is written to disk."""
        if (child := self.child) and not child.stop(signal.SIGINT, grace_s=_STOP_TIMEOUT_S):
            _wait_for_end(_servers_of(find_home(self._state_dir)))

    def find(self) -> Child | None:
        """The server an earlier run left running, if any; starts nothing."""
        if self._settings_path.exists() and self.child is None:
            record = self._settings()
            self._child = Child.find(record.get("pid", 0), record.get("started", ""))
        return self.child

    def _adopt(self, home: PostgresHome) -> bool:
        if self.find() is None:
            for server in _servers_of(home):
                # A postmaster whose record was never written; its port stands in its own file.
                if _is_postmaster(home, server.pid) and (moment := start_moment(server.pid)):
                    Child(server.pid, moment).stop(signal.SIGINT, grace_s=_STOP_TIMEOUT_S)
            return False
        with contextlib.suppress(StackError):
            self._wait_until_ready(home)
            return True
        self.stop()
        return False

    def _create_cluster(self, home: PostgresHome) -> None:
        """initdb. Deletes what an initdb that was killed half-way left behind."""
        settings = {"admin_password": secrets.token_urlsafe(24)}
        settings |= {"owner_password": secrets.token_urlsafe(24)}
        write_private(self._settings_path, json.dumps(settings))
        password_file = home.folder / "password"
        write_private(password_file, settings["admin_password"], home.account)
        command = [str(home.programs / "initdb"), "-D", str(home.data), "-U", _ADMIN]
        command += ["--pwfile", str(password_file), "--auth-host=scram-sha-256"]
        command += [
            "--auth-local=reject",
            "--encoding=UTF8",
            "--locale-provider=builtin",
        ]
        command += ["--builtin-locale=C.UTF-8", "--locale=C"]
        command += [] if self._durable else ["--no-sync"]
        try:
            if home.data.exists():
                shutil.rmtree(home.data)
            child = spawn(
                command,
                env=_env(),
                log_path=self.log_path,
                cwd=home.folder,
                account=home.account,
            )
            if not child.wait(_START_TIMEOUT_S) or child.exit_code != 0:
                child.kill()
                raise StackError(f"initdb failed, see {self.log_path}:\n{tail(self.log_path)}")
        finally:
            password_file.unlink(missing_ok=True)

    def _try_start(self, home: PostgresHome) -> bool:
        """False if it ended before it answered (its port was taken in the last moment)."""
        settings = self._settings()
        port = self._wanted_port or ports.choose(settings.get("port"))
        self._child = spawn(
            self._command(home, port),
            env=_env(),
            log_path=self.log_path,
            cwd=home.folder,
            account=home.account,
            death_signal=signal.SIGINT if self._die_with_parent else None,
        )
        record = {"port": port, "pid": self._child.pid, "started": self._child.started}
        write_private(self._settings_path, json.dumps(settings | record))
        with contextlib.suppress(StackError):
            self._wait_until_ready(home)
            return True
        self._child.stop(signal.SIGINT, grace_s=_STOP_TIMEOUT_S)
        return False

    def _command(self, home: PostgresHome, port: int) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_messages": "warning",
            # A line of SQL may hold a prompt; only its error is written.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",  # its details quote rows
        }
        if not self._durable:
            options |= {
                "fsync": "off",
                "full_page_writes": "off",
                "max_wal_size": "4GB",
                "scram_iterations": "1",  # tests connect thousands of times
            }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(home.programs / "postgres"), "-D", str(home.data), *flags]

    def _clear_leftovers(self, home: PostgresHome) -> None:
        """After a kill -9: wait for orphaned backends, then drop the stale lock file.

        The file's pid may by now belong to a stranger, and Postgres would refuse to start.
        """
        _wait_for_end(_servers_of(home))
        (home.data / "postmaster.pid").unlink(missing_ok=True)

    def _wait_until_ready(self, home: PostgresHome) -> None:
        """By its own word first: whoever else holds the port might accept and never answer."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (child := self.child) and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                if _has_come_up(home, child.pid):
                    self._admin().close()
                    return
            child.wait(0.02)
        raise StackError("Postgres did not answer")

    def _ensure_owner(self) -> None:
        """Idempotent. Each start sets the password anew, so settings and server can't drift."""
        with self._admin() as connection:
            role = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [OWNER])
            verb = sql.SQL("ALTER" if role.fetchone() else "CREATE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN CREATEROLE PASSWORD {}").format(
                    verb,
                    sql.Identifier(OWNER),
                    sql.Literal(self._settings()["owner_password"]),
                )
            )
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if not found.fetchone():
                names = sql.Identifier(DATABASE), sql.Identifier(OWNER)
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.admin_url(), autocommit=True, connect_timeout=5)

    def _settings(self) -> dict[str, Any]:
        return read_json(self._settings_path)


def _env() -> dict[str, str]:
    """Nothing of ours: PG* variables of the caller would change what the programs do."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _servers_of(home: PostgresHome) -> list[psutil.Process]:
    """Processes of the server on this data folder: each has it as its working directory."""
    data = str(home.data.resolve())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "postgres" and process.cwd() == data:
                found.append(process)
    return found


def _lock_file(home: PostgresHome) -> list[str]:
    """Lines of postmaster.pid: the first is the pid, the eighth the state of the server."""
    with contextlib.suppress(OSError):
        return (home.data / "postmaster.pid").read_text().splitlines()
    return []


def _is_postmaster(home: PostgresHome, pid: int) -> bool:
    return _lock_file(home)[:1] == [str(pid)]


def _has_come_up(home: PostgresHome, pid: int) -> bool:
    lines = _lock_file(home)
    return lines[:1] == [str(pid)] and len(lines) >= 8 and lines[7].strip() == "ready"


def _wait_for_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
