"""The embedded Postgres: it starts anywhere, survives kills, and harms nobody else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cli.stack.errors import StackError
from cli.stack.postgres import EmbeddedPostgres
from cli.stack.postgres_home import find_home, remove_outside_home

IS_ROOT = os.geteuid() == 0


@contextmanager
def running(state_dir: Path, port: int | None = None) -> Iterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(state_dir, port, durable=False, die_with_parent=True)
    postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()


def write_row(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("CREATE TABLE kept (value text)")
        connection.execute("INSERT INTO kept VALUES ('still here')")


def read_row(postgres: EmbeddedPostgres) -> object:
    with psycopg.connect(postgres.url()) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
    return row[0] if row else None


def test_restart_keeps_data_port_and_password(state_dir: Path) -> None:
    with running(state_dir) as first:
        write_row(first)
        url = first.url()

    with running(state_dir) as second:
        assert second.url() == url
        assert read_row(second) == "still here"


def test_restart_after_kill_recovers_committed_data(state_dir: Path) -> None:
    with running(state_dir) as postgres:
        write_row(postgres)
        assert postgres.child is not None
        postgres.child.kill()

        postgres.start()

        assert read_row(postgres) == "still here"


def test_server_of_a_killed_supervisor_is_adopted(state_dir: Path) -> None:
    with running(state_dir) as orphan:
        assert orphan.child is not None
        pid = orphan.child.pid

        with running(state_dir) as heir:
            assert heir.child is not None
            assert heir.child.pid == pid


def test_server_without_a_record_is_replaced(state_dir: Path) -> None:
    with running(state_dir) as orphan:
        write_row(orphan)
        settings = (state_dir / "postgres.json").read_text()
        (state_dir / "postgres.json").write_text(settings.replace('"pid"', '"forgotten"'))

        with running(state_dir) as heir:
            assert read_row(heir) == "still here"
            assert orphan.child is None


def test_stale_lock_file_with_a_strangers_pid_is_no_obstacle(state_dir: Path) -> None:
    with running(state_dir):
        pass
    lock_file = find_home(state_dir).data / "postmaster.pid"
    lock_file.write_text(f"{os.getpid()}\n{lock_file.parent}\n0\n1\n\n\n")

    with running(state_dir) as postgres:
        assert postgres.child is not None
        assert postgres.child.pid != os.getpid()


def test_half_made_cluster_is_made_again(state_dir: Path) -> None:
    data = find_home(state_dir).data
    data.mkdir()
    (data / "half").write_text("initdb was killed")

    with running(state_dir) as postgres:
        write_row(postgres)


def test_path_with_a_space_and_longer_than_a_socket_name(state_dir: Path) -> None:
    with running(state_dir / ("a b " + "c" * 120)) as postgres:
        write_row(postgres)


def test_remembered_port_that_is_taken_is_replaced(state_dir: Path) -> None:
    with running(state_dir) as first:
        port = first.port
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()

        with running(state_dir) as second:
            assert second.port != port


def test_wanted_port_that_is_taken_is_an_error(state_dir: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()

        with pytest.raises(StackError, match="does not start"):
            EmbeddedPostgres(state_dir, squatter.getsockname()[1], durable=False).start()


def test_it_asks_for_a_password_and_has_no_socket(state_dir: Path) -> None:
    with running(state_dir) as postgres:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=postgres.port, user="millrace_admin")
        with psycopg.connect(postgres.admin_url()) as connection:
            settings = connection.execute(
                "SELECT current_setting('listen_addresses'),"
                " current_setting('unix_socket_directories')"
            ).fetchone()

    assert settings == ("127.0.0.1", "")


def test_secrets_and_data_are_private(state_dir: Path) -> None:
    with running(state_dir):
        home = find_home(state_dir)

        assert stat.S_IMODE((state_dir / "postgres.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(home.data.stat().st_mode) == 0o700
        assert stat.S_IMODE(state_dir.stat().st_mode) & 0o007 == 0


def test_owner_is_no_superuser_but_can_create_roles(state_dir: Path) -> None:
    with running(state_dir) as postgres, psycopg.connect(postgres.url()) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname=current_user"
        ).fetchone()

    assert row == (False, True, False)


def test_it_ends_with_its_parent(state_dir: Path) -> None:
    with running(state_dir) as postgres:
        assert postgres.child is not None
        child = postgres.child
        child.send(signal.SIGINT)  # what the kernel sends when the parent dies

        assert child.wait(10)


@pytest.mark.skipif(not IS_ROOT, reason="only root can't run Postgres as itself")
class TestAsRoot:
    def test_it_runs_as_an_unprivileged_user(self, state_dir: Path) -> None:
        with running(state_dir) as postgres:
            assert postgres.child is not None
            owner = Path(f"/proc/{postgres.child.pid}").stat().st_uid

        assert owner != 0

    def test_closed_parent_folder_stays_closed(self, state_dir: Path) -> None:
        closed = state_dir / "home"
        closed.mkdir(mode=0o700, parents=True)
        inner = closed / "clone" / ".millrace"
        inner.mkdir(parents=True)
        try:
            with running(inner) as postgres:
                write_row(postgres)
            with running(inner) as postgres:
                assert read_row(postgres) == "still here"

            assert stat.S_IMODE(closed.stat().st_mode) == 0o700
            assert not find_home(inner).folder.is_relative_to(closed)
        finally:
            remove_outside_home(inner)

    def test_copied_state_folder_gets_a_home_of_its_own(self, state_dir: Path) -> None:
        closed = state_dir / "home"
        closed.mkdir(mode=0o700, parents=True)
        first, second = closed / "first", closed / "second"
        first.mkdir()
        home = find_home(first)
        shutil.copytree(first, second)
        try:
            assert find_home(second).folder != home.folder
        finally:
            remove_outside_home(first)
            remove_outside_home(second)
