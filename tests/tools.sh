#!/usr/bin/env bash
# Puts NVIDIA's assembler and disassembler into tools/cuda/bin, from their Python packages, and prints the folder. The
# assembler of the major version before goes there too, as ptxas-12.
#
#     bash tests/tools.sh
#
# They check generated PTX in tests and are needed for nothing else. The versions are those of the recorded goldens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nvcc=13.5.37
nvcc12=12.9.86
nvdisasm=13.5.37
bin="$PWD/tools/cuda/bin"
stamp="$bin/.versions"

if [ "$(cat "$stamp" 2>/dev/null)" != "$nvcc $nvcc12 $nvdisasm" ]; then
    python3 -m pip --version >/dev/null 2>&1 || { echo 'tests/tools.sh: Python has no pip: install it.' >&2; exit 1; }
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$scratch" \
        "nvidia-cuda-nvcc==$nvcc" "nvidia-cuda-nvcc-cu12==$nvcc12" "nvidia-cuda-nvdisasm==$nvdisasm" >&2
    for wheel in "$scratch"/*.whl; do
        python3 -m zipfile -e "$wheel" "$scratch/unpacked"
    done
    mkdir -p "$bin"
    cp "$scratch"/unpacked/nvidia/cu13/bin/{ptxas,nvdisasm} "$bin/"
    cp "$scratch"/unpacked/nvidia/cuda_nvcc/bin/ptxas "$bin/ptxas-12"
    chmod +x "$bin/ptxas" "$bin/ptxas-12" "$bin/nvdisasm"
    echo "$nvcc $nvcc12 $nvdisasm" >"$stamp"
fi
"$bin/ptxas" --version >/dev/null && "$bin/ptxas-12" --version >/dev/null && "$bin/nvdisasm" --version >/dev/null
echo "$bin"
