#!/bin/sh
# Makes .venv and installs requirements.lock into it. Needs Python 3.11 or newer and nothing else.
# PYTHON names the interpreter. TORCH=cpu or cuda chooses the build of torch; without it a machine
# on which no NVIDIA GPU is seen gets the CPU build, which is several GB smaller.
set -eu

CPU_INDEX="https://download.pytorch.org/whl/cpu"  # PyTorch's own index; has the CPU builds
VENV_PYTHON=.venv/bin/python

fail() {
    echo "millrace: $1" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the first of the given interpreters that is new enough and has the module(s).
first_with() {
    modules=$1
    shift
    for name in "$@"; do
        if is_new_enough "$name" && "$name" -c "import $modules" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# 3.12 and 3.11 first: packages have wheels for these before they have them for newer ones.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.12 python3.11 python3 python3.13 python3.14
    fi
    if first_with "ensurepip, venv" "$@"; then
        return
    fi
    if first_with "sys" "$@" >/dev/null; then
        fail "Python comes without venv here: run 'apt install python3-venv' and try again"
    fi
    fail "Millrace needs Python 3.11 or newer: install it, or name it by PYTHON=/path/to/python3.12"
}

make_venv() {
    if [ -x $VENV_PYTHON ] && is_new_enough $VENV_PYTHON \
        && $VENV_PYTHON -m pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python) || exit 1
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
}

has_gpu() {
    [ -e /dev/nvidia0 ] || [ -e /dev/dxg ] || command -v nvidia-smi >/dev/null 2>&1
}

# Whether the configured package index would bring CUDA packages with this torch.
brings_cuda() {
    $VENV_PYTHON -m pip install --quiet --dry-run --report - "$1" 2>/dev/null | grep -q '"nvidia-'
}

# Before everything else: pip would take the package index's build of torch for the one whose hash
# it knows. The CPU builds come from PyTorch's own index, with no hash but that of the index.
install_torch() {
    torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.lock)
    if $VENV_PYTHON -m pip show torch 2>/dev/null | grep -q "^Version: ${torch#torch==}"; then
        return
    fi
    if [ "${TORCH:-}" = cuda ] || { [ -z "${TORCH:-}" ] && has_gpu && brings_cuda "$torch"; }; then
        $VENV_PYTHON -m pip install --no-deps -r deploy/cuda.lock
        return
    fi
    if [ "${TORCH:-}" = cpu ] || brings_cuda "$torch"; then
        echo "Installing $torch for the CPU (TORCH=cuda installs the build for NVIDIA GPUs)"
        $VENV_PYTHON -m pip install --no-deps --index-url "$CPU_INDEX" "$torch" && return
        echo "The CPU build can't be had from $CPU_INDEX; taking the package index's build" >&2
    fi
    if brings_cuda "$torch"; then
        $VENV_PYTHON -m pip install --no-deps -r deploy/cuda.lock
    else
        $VENV_PYTHON -m pip install --no-deps "$torch"
    fi
}

make_venv
echo "Installing requirements.lock (a few minutes the first time)"
install_torch
$VENV_PYTHON -m pip install --disable-pip-version-check -r requirements.lock \
    || fail "the packages could not be installed, see above; 'make install' tries again"
# "compat" puts this folder on the path as it is; the default would need a list of packages.
$VENV_PYTHON -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation \
    --config-settings editable_mode=compat --editable . \
    || fail "Millrace itself could not be installed, see above"
echo "Installed."
