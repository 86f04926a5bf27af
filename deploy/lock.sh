#!/bin/sh
# Writes requirements.lock: all that the extras of pyproject.toml but s3, kernels, compat and agents
# bring, in the newest versions they allow, with the hashes of their files: pip installs no others.
# Run the whole suite on the result before you commit it.
#
# `deploy/lock.sh hashes FILE` only writes the hashes of a list of pinned packages anew, and
# `deploy/lock.sh cuda` only deploy/cuda.lock.
set -eu

compile_pins() {
    tool=build/uv-venv
    [ -x $tool/bin/uv ] || { "${PYTHON:-python3}" -m venv $tool && $tool/bin/pip install -q uv; }
    $tool/bin/uv pip compile --quiet --generate-hashes --no-header --no-annotate --universal \
        --python-version 3.11 "$@"
}

# Prints the pins of a file with their hashes; the comments at its top stay.
with_hashes() {
    sed -n '/^#/!q;p' "$1"
    sed -E -e '/^ *(#|--hash)/d' -e 's/ *\\$//' "$1" > build/pins.txt
    compile_pins --no-deps build/pins.txt
}

# Prints what a list of requirements needs on any Linux and any Python from 3.11 on, as far as the pins
# of a file don't hold it: one environment is frozen, and redis needs async-timeout before 3.11.3.
other_pins() {
    compile_pins -c "$1" "$2" | sed -n -E 's/^([a-z0-9].*==[^\\]*[^ \\]).*/\1/p' \
        | grep -v -E "^(nvidia-|cuda-|triton=)|== '(win32|emscripten)'" \
        | while read -r pin; do grep -q -i "^${pin%%==*}==" "$1" || echo "$pin"; done
}

# Prints torch from the package index and the CUDA packages that it brings there.
cuda_pins() {
    echo "# What TORCH=cuda installs before requirements.lock. Written by \`make lock\`."
    sed -n 's/^\([A-Za-z0-9_.-]*==[^ ]*\).*/\1/p' requirements.lock > build/pins.txt
    grep '^torch==' build/pins.txt > build/torch.txt
    compile_pins -c build/pins.txt build/torch.txt \
        $(sed '/^torch==/d; s/==.*//; s/^/--no-emit-package /' build/pins.txt)
}

mkdir -p build
if [ "${1:-}" = hashes ]; then
    with_hashes "$2" > build/with-hashes.txt
    cp build/with-hashes.txt "$2"
    exit
elif [ "${1:-}" = cuda ]; then
    cuda_pins > deploy/cuda.lock
    exit
fi

fresh=build/lock-venv
rm -rf $fresh
"${PYTHON:-python3}" -m venv $fresh
$fresh/bin/python - > build/lock-requirements.txt <<'PYTHON_CODE'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))
needed = project["project"]["dependencies"] + project["build-system"]["requires"]
for name, extra in project["project"]["optional-dependencies"].items():
    needed += extra if name not in ("s3", "kernels", "compat", "agents") else []
print("\n".join(sorted(set(needed))))
PYTHON_CODE
$fresh/bin/python -m pip install --disable-pip-version-check -r build/lock-requirements.txt
$fresh/bin/python -m pip freeze --all > build/frozen.txt
# Without the local part (+cpu) every build of torch fits; CUDA's own packages come with the build
# that needs them.
{
    echo "# All dependencies with their versions, for plain pip. Written by \`make lock\`."
    grep -v -i -E '^(pip|wheel|nvidia-[^=]*|triton|cuda-[^=]*|millrace-platform)(==| @)' \
        build/frozen.txt | sed -E 's/^([^=]+==[^+]+)\+.*/\1/'
} > build/unhashed.txt
other_pins build/unhashed.txt build/lock-requirements.txt > build/others.txt
cat build/others.txt >> build/unhashed.txt
with_hashes build/unhashed.txt > requirements.lock
cuda_pins > deploy/cuda.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
