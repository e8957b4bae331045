#!/usr/bin/env bash
# Measures Frit on the NVIDIA GPU of this machine, and the modes of PyTorch beside it where Python has torch.
#
#     bash benches/gpu/run.sh [FOLDER]
#
# In this order: correctness against the CPU and float64 goldens (no figure is printed before), the stream rate of the device,
# then decode, prefill, encoder, matrix products and kernels that memory bounds, on seeded random weights. Ends within 8
# minutes on one GPU, the build apart: workloads that do not fit any more are left out and named. The kernels that memory bounds and the
# comparison with goldens have not run on a GPU yet. Writes FOLDER/gpu.json and FOLDER/gpu.md (FOLDER: benches/results). FRIT
# names a binary that is there already, and FRIT_BENCH_OPTIONS more options of measure.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out="${1:-benches/results}"
weights="${FRIT_BENCH_WEIGHTS:-${TMPDIR:-/tmp}/frit-bench}"
mkdir -p "$out" "$weights"

if [ -n "${FRIT:-}" ]; then
    frit="$FRIT"
else
    cargo build --release --bin frit
    frit="${CARGO_TARGET_DIR:-target}/release/frit"
fi
python="${PYTHON:-python3}"

SECONDS=0
said="$(timeout 60 "$frit" bench gemm --tokens 64 --rounds 1 --backend cuda 2>&1)" || {
    printf 'benches/gpu/run.sh: %s\n' "$said" >&2
    exit 1
}
# told to end, it writes what it has
left=$((480 - SECONDS))
# shellcheck disable=SC2086
exec timeout --kill-after=10 "$left" "$python" benches/gpu/measure.py --frit "$frit" --weights "$weights" --out "$out" --seconds "$((left - 10))" ${FRIT_BENCH_OPTIONS:-}
