#!/usr/bin/env bash
# Runs each fuzz target of wire/fuzz for some seconds (default 600) under AddressSanitizer; needs no other toolchain than
# the one at hand and no cargo-fuzz. Usage: scripts/fuzz.sh [seconds [target…]]
# A crash is left in wire/fuzz/artifacts and ends the script.
set -euo pipefail
cd "$(dirname "$0")/../wire/fuzz"
seconds=${1:-600}
shift || true
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1"
cargo build --quiet --release --target "$host"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd fuzz_targets && ls -- *.rs | sed 's/\.rs$//')
mkdir -p artifacts
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for target in "${targets[@]}"; do
    seeds=()
    [ ! -d "corpus/$target" ] || seeds=("corpus/$target")
    mkdir "$found/$target"
    log=$found/$target.log
    if ! "target/$host/release/$target" "$found/$target" "${seeds[@]}" -max_total_time="$seconds" -max_len=8192 \
        -print_final_stats=1 -artifact_prefix="artifacts/$target-" >"$log" 2>&1; then
        tail -40 "$log"
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    cover=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
    echo "$target: $seconds s, $runs inputs, ${cover:-cov: ?}, no finding"
done
