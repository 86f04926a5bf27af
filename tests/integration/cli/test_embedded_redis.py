"""The embedded Redis, with every redis-server at hand."""

from __future__ import annotations

import base64
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from cli.stack.redis import EmbeddedRedis, find_program, wheel_program
from tests.support.services import redis_programs

# What Redis 6.2 left, which Millrace brought until release 0.1: a snapshot, then commands.
_FILE_OF_REDIS_6 = base64.b64decode(
    "UkVESVMwMDA5+glyZWRpcy12ZXIGNi4yLjE0+gpyZWRpcy1iaXRzwED6BWN0aW1lwn+PDGv6CHVzZWQtbWVtwiBSDg"
    "D6DGFvZi1wcmVhbWJsZcAB/gD7BAANAWgQEAAAAA0AAAACAAABcwP0/wAEa2VwdApzdGlsbCBoZXJlDAF6ExMAAAAN"
    "AAAAAgAAAWEDAzEuNf8OG2luZmVyZW5jZS5kZWZhdWx0LmRlZmF1bHQuMAETEwAAAA4AAAACAAACbTEEAm0y//9ODd"
    "3N9k+NvyoyDQokNg0KU0VMRUNUDQokMQ0KMA0KKjMNCiQ1DQpSUFVTSA0KJDI3DQppbmZlcmVuY2UuZGVmYXVsdC5k"
    "ZWZhdWx0LjANCiQyDQptMw0K"
)


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


def test_data_of_redis_6_is_taken_over(state_dir: Path, program: Path) -> None:
    (state_dir / "redis").mkdir(parents=True)
    (state_dir / "redis" / "appendonly.aof").write_bytes(_FILE_OF_REDIS_6)

    for _ in ("its file", "the files made of it"):
        with running(state_dir, program) as server, client(server) as connection:
            assert connection.get("kept") == "still here"
            assert connection.lrange("inference.default.default.0", 0, -1) == ["m1", "m2", "m3"]


def test_data_that_only_another_server_reads_is_left_behind(state_dir: Path, program: Path) -> None:
    later = b"REDIS0199" + _FILE_OF_REDIS_6[9:]
    (state_dir / "redis" / "appendonlydir").mkdir(parents=True)
    (state_dir / "redis" / "appendonly.aof").write_bytes(later)

    with running(state_dir, program) as server, client(server) as connection:
        assert connection.dbsize() == 0
        assert "can't read another one's data" in server.log_path.read_text()


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_server_on_the_path_goes_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).symlink_to(wheel_program())
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nonexistent")

    assert find_program() == tmp_path / name


def test_without_one_on_the_path_the_wheel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    assert find_program() == wheel_program()


def _has_waitaof(connection: redis.Redis) -> bool:
    version = str(connection.info("server")["redis_version"])
    return tuple(map(int, version.split(".")[:2])) >= (7, 2)
