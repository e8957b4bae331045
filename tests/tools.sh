#!/usr/bin/env bash
# Puts NVIDIA's assembler and disassembler into tools/cuda/bin, from their Python packages, and prints the folder.
#
#     bash tests/tools.sh
#
# They check generated PTX in tests and are needed for nothing else. The versions are those of the recorded goldens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nvcc=13.5.37
nvdisasm=13.5.37
bin="$PWD/tools/cuda/bin"
stamp="$bin/.versions"

if [ "$(cat "$stamp" 2>/dev/null)" != "$nvcc $nvdisasm" ]; then
    python3 -m pip --version >/dev/null 2>&1 || { echo 'tests/tools.sh: Python has no pip: install it.' >&2; exit 1; }
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$scratch" \
        "nvidia-cuda-nvcc==$nvcc" "nvidia-cuda-nvdisasm==$nvdisasm" >&2
    for wheel in "$scratch"/*.whl; do
        python3 -m zipfile -e "$wheel" "$scratch/unpacked"
    done
    mkdir -p "$bin"
    cp "$scratch"/unpacked/nvidia/cu13/bin/{ptxas,nvdisasm} "$bin/"
    chmod +x "$bin/ptxas" "$bin/nvdisasm"
    echo "$nvcc $nvdisasm" >"$stamp"
fi
"$bin/ptxas" --version >/dev/null && "$bin/nvdisasm" --version >/dev/null
echo "$bin"
