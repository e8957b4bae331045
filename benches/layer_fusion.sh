#!/usr/bin/env bash
# What layer fusion saves and costs on fixtures/lexicon: one line a transform, as in the README.
# Usage: benches/layer_fusion.sh [FRIT]    (the command built with `cargo build --release` unless named)
set -euo pipefail
cd "$(dirname "$0")/.."
frit=${1:-${CARGO_TARGET_DIR:-target}/release/frit}
model=fixtures/lexicon
calib=fixtures/lexicon/calibration.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

field() { grep -o "\"$2\": *[^,}]*" "$1" | head -n 1 | sed 's/.*: *//'; }

# Tokens a second: the best of three runs of 96 tokens.
speed() {
    local best=0 n s rate
    for _ in 1 2 3; do
        "$frit" generate "$1" --prompt "kiln (noun):" --backend cpu --ignore-eos --max-new-tokens 96 --json >"$work/run.json"
        n=$(field "$work/run.json" decode_tokens)
        s=$(field "$work/run.json" decode_seconds)
        rate=$(awk -v n="$n" -v s="$s" 'BEGIN { printf "%.0f", n / s }')
        [ "$rate" -gt "$best" ] && best=$rate
    done
    echo "$best"
}

line() {
    local at=$1 what=$2
    "$frit" inspect "$at" --json >"$work/inspect.json"
    "$frit" diff $model "$at" --calib $calib --backend cpu --json >"$work/diff.json"
    "$frit" generate "$at" --prompt "kiln (noun):" --backend cpu --max-new-tokens 2 --json >"$work/run.json"
    printf '| %s | %.1f MB | %s B | %s | %s | %.2f | %.0f %% |\n' "$what" \
        "$(awk -v b="$(field "$work/inspect.json" bytes)" 'BEGIN { print b / 1e6 }')" \
        "$(field "$work/inspect.json" bytes_per_token)" \
        "$(field "$work/run.json" kernels_per_token)" \
        "$(speed "$at")" \
        "$(field "$work/diff.json" logit_kl)" \
        "$(awk -v a="$(field "$work/diff.json" top1_agreement)" 'BEGIN { print 100 * a }')"
}

echo '| `frit transform …` | weights | cache a token | launches a token | tokens/s | KL, nats | same top token |'
echo '|---|---|---|---|---|---|---|'
line $model 'the model as it is'
while read -r name options; do
    rm -rf "$work/out"
    # shellcheck disable=SC2086
    "$frit" transform "$name" $model -o "$work/out" $options --calib $calib --backend cpu >"$work/log"
    line "$work/out" "\`$name $options\`"
done <<'LIST'
share-layers --pattern repeat:2 --private norms
share-kv --pattern cla:2
prune-layers --auto 1 --metric macro-influence
merge-layers --pairs 3:4 --method slerp --t 0.3
recurse --block 3 --init average --lora-rank 48
share-attention --spans 3-4
LIST
