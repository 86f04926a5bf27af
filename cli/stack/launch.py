"""Replace this process by a command: as another user, and ended when its parent is.

Run as a script (`python launch.py OPTIONS_JSON COMMAND...`), on the standard library alone. It
exists because `preexec_fn` is unsafe in a process with threads. The pid stays the same.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    options = json.loads(argv[1])
    if (uid := options.get("uid")) is not None:
        os.setgroups([])
        os.setgid(options["gid"])
        os.setuid(uid)
        os.umask(0o077)
    # After the change of user: the kernel clears the death signal when credentials change.
    if (death_signal := options.get("death_signal")) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != options["parent"]:
            sys.exit(f"{argv[2]}: its parent ended before it started")
    os.execvp(argv[2], argv[2:])


if __name__ == "__main__":
    main(sys.argv)
