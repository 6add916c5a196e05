#!/usr/bin/env bash
# Makes an environment: scripts/setup.sh FOLDER EXTRAS. Does nothing when it is already up to date.
set -euo pipefail
folder=$1 extras=$2
cd "$(dirname "$0")/.."

stamp="$folder/.openvocab-$extras"
wanted=$(cat pyproject.toml constraints-cpu.txt scripts/setup.sh | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "openvocab needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON=/path/to/python3.11" >&2
    exit 1
}
if [ ! -x "$folder/bin/python" ]; then
    "$python" -m venv "$folder" || {
        rm -rf "$folder"
        echo "could not make a virtual environment: install your system's python3-venv package, then run make again" >&2
        exit 1
    }
fi
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv

# A folder of local wheels may hold a CPU build of torch; uv reads it under its own name.
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
local_torch=no
for links in ${UV_FIND_LINKS:-}; do
    compgen -G "${links#file://}/torch-*+cpu-*.whl" >/dev/null && local_torch=yes
done

install() { "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" "$@" --editable ".[$extras]"; }
if [ "$local_torch" = yes ] || [ "$(uname -s)" != Linux ]; then
    install --constraint constraints-cpu.txt
elif command -v nvidia-smi >/dev/null 2>&1; then
    install
elif ! install --torch-backend=cpu --constraint constraints-cpu.txt; then
    echo "no CPU build of torch could be had: installing the default one, about 5 GB with its CUDA libraries" >&2
    install
fi
echo "$wanted" >"$stamp"
