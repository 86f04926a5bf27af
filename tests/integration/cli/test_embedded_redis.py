"""The embedded Redis, with every redis-server at hand."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from cli.stack.redis import EmbeddedRedis
from tests.support.services import redis_programs


@pytest.fixture(params=redis_programs(), ids=lambda path: path.parent.parent.name)
def program(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@contextmanager
def running(
    state_dir: Path, program: Path, *, port: int | None = None, persistent: bool = True
) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(
        state_dir, port, program=program, persistent=persistent, die_with_parent=True
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def test_restart_keeps_data_and_address(state_dir: Path, program: Path) -> None:
    with running(state_dir, program) as first, client(first) as connection:
        connection.set("kept", "still here")
        url = first.url

    with running(state_dir, program) as second, client(second) as connection:
        assert second.url == url
        assert connection.get("kept") == "still here"


def test_restart_after_kill_keeps_what_was_written_to_disk(state_dir: Path, program: Path) -> None:
    with running(state_dir, program) as server:
        with client(server) as connection:
            connection.set("kept", "still here")
            connection.execute_command("WAITAOF", 1, 0, 5000) if _has_waitaof(connection) else None
        assert server.child is not None
        server.child.kill()

        server.start()

        with client(server) as connection:
            assert connection.get("kept") == "still here"


def test_not_persistent_starts_empty(state_dir: Path, program: Path) -> None:
    with running(state_dir, program, persistent=False) as server:
        with client(server) as connection:
            connection.set("lost", "gone")
        server.stop()

        server.start()

        with client(server) as connection:
            assert connection.dbsize() == 0


def test_server_of_a_killed_supervisor_is_adopted(state_dir: Path, program: Path) -> None:
    with running(state_dir, program) as orphan, running(state_dir, program) as heir:
        assert orphan.child is not None
        assert heir.child is not None
        assert heir.child.pid == orphan.child.pid


def test_path_with_a_space(state_dir: Path, program: Path) -> None:
    with running(state_dir / "a b", program) as server, client(server) as connection:
        assert connection.ping()


def test_remembered_port_that_is_taken_is_replaced(state_dir: Path, program: Path) -> None:
    with running(state_dir, program) as first:
        port = first.port
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()

        with running(state_dir, program) as second:
            assert second.port != port


def test_it_asks_for_a_password_and_never_evicts(state_dir: Path, program: Path) -> None:
    with running(state_dir, program) as server:
        with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port) as stranger:
            stranger.ping()
        with client(server) as connection:
            policy = connection.config_get("maxmemory-policy")

        assert policy == {"maxmemory-policy": "noeviction"}
        assert stat.S_IMODE((state_dir / "redis.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((state_dir / "redis" / "redis.conf").stat().st_mode) == 0o600


def _has_waitaof(connection: redis.Redis) -> bool:
    version = str(connection.info("server")["redis_version"])
    return tuple(map(int, version.split(".")[:2])) >= (7, 2)
