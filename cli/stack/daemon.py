"""The supervisor in the background: `python -m cli.stack.daemon OPTIONS_JSON`.

It reports its progress as JSON lines on stdout until it is ready, then lets go of it. Whoever
started it may go away at any time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

from cli.stack.errors import StackError
from cli.stack.logs import log_to
from cli.stack.options import Step, UpOptions
from cli.stack.stack import Stack, open_state


class Stopped(BaseException):
    """SIGTERM or SIGINT arrived."""


def main(argv: list[str]) -> int:
    state = open_state()
    log_to(state.logs / "supervisor.log")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    with state.lock() as is_ours:
        if not is_ours:
            _say(Step.ERROR, "another `millrace up` has just started here: see `millrace status`")
            return 1
        return _supervise(Stack(state, UpOptions.from_json(argv[1]), _say))


def _supervise(stack: Stack) -> int:
    try:
        stack.start()
        _say(Step.READY, "")
        _let_go_of_stdout()
        while True:
            signal.pause()
    except StackError as error:
        _say(Step.ERROR, str(error))
        return 1
    except Stopped:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stack.stop()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _say(step: Step, text: str) -> None:
    try:
        print(json.dumps({"step": step, "text": text}), flush=True)
    except BrokenPipeError:
        _let_go_of_stdout()
    except OSError:  # stdout is the log by now, and its disk is full: nobody is told
        return


def _let_go_of_stdout() -> None:
    """Into the log, where stderr goes already."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
