"""What a user sees when something is wrong: one line, and an exit code that isn't 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

FAILED = 1
MISUSE = 2
INTERRUPTED = 130


class CommandError(Exception):
    """A command can't do what it was asked to. The message is one line."""

    exit_code = FAILED


class MisuseError(CommandError):
    """What it was asked makes no sense, whatever there is on this machine or the server."""

    exit_code = MISUSE


@contextmanager
def one_line_errors() -> Iterator[None]:
    """The boundary of every command: errors we know become one line, others a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `millrace watch | head`
        sys.exit(FAILED)
    except UnicodeEncodeError:
        print("millrace: an argument is not valid text", file=sys.stderr)
        sys.exit(MISUSE)
    except Exception as error:
        if _is_misuse(error):
            _explain_misuse(error)
        if not _is_known(error):
            raise
        print(f"millrace: {_text(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", FAILED))


def _is_misuse(error: Exception) -> bool:
    """An option or argument that doesn't exist, is missing, or has a bad value."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _explain_misuse(error: Any) -> NoReturn:
    """In one line; a group of commands without one explains itself."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        hint = f" (see `{context.command_path} --help`)" if context else ""
        print(f"millrace: {' '.join(error.format_message().split())}{hint}", file=sys.stderr)
    sys.exit(error.exit_code)


def _text(error: Exception) -> str:
    """Our own errors may end with the last lines of a log; those of libraries are made one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    is_ours = type(error).__module__.startswith("cli.")
    return text if is_ours else " ".join(text.split()) or type(error).__name__


def _is_known(error: Exception) -> bool:
    """By name, so that a command pays for the imports it needs and no others."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return not names.isdisjoint(_KNOWN)


_KNOWN = frozenset(
    {
        "cli.errors.CommandError",
        "cli.stack.errors.StackError",
        "store.catalog_file.CatalogError",
        "millrace.errors.MillraceError",
        "tasks.errors.ServiceError",
        "psycopg.OperationalError",
        "httpx.TransportError",
        "builtins.OSError",  # a file that isn't there
    }
)
