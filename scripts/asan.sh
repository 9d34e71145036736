#!/bin/sh
# Tests the module for httpd and the worker's extension under AddressSanitizer, in an Apache whose pools take every piece
# from malloc and give it back when they are cleared (APR's own --enable-pool-debug): memory of ours or of httpd's that is
# used after its pool has gone is found. For nginx see scripts/nginx-poisoned.sh. Everything lies in build/asan; nothing is installed
# but packages for the build.
#   scripts/asan.sh [arguments of pytest]     default: the conformance suite on event
# The switch of rustc is not stable: RUSTC_BOOTSTRAP=1, for these builds alone. rustc leaves the runtime of a shared library
# undefined, so gcc's is loaded before anything else; both speak version 8 of the interface.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
scripts/setup.sh test
scripts/venv.sh
where=$PWD/build/asan
target=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$where"

# gcc brings the runtime.
asan=$(gcc -print-file-name=libasan.so)
asan=$(readlink -f "$asan")
[ -f "$asan" ] || { echo "$0: no libasan beside gcc: install libasan8" >&2; exit 1; }

RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address -Cforce-frame-pointers=yes' CARGO_TARGET_DIR=$where/target \
    PYO3_BUILD_EXTENSION_MODULE=1 PYO3_NO_PYTHON=1 \
    cargo build --locked --target "$target" -p mod-wsgi-rs -p mod-wsgi-worker
out=$where/target/$target/debug
for so in libmod_wsgi_rs.so libmod_wsgi_worker.so; do
    nm -D "$out/$so" | grep -q ' U __asan_' || { echo "$0: $so was not built with AddressSanitizer" >&2; exit 1; }
done

# The binary is an ordinary one (its threads and its parsers are fuzzed), beside the module, where it is looked for.
profile=${MWR_PROFILE:-debug}
[ -f "target/$profile/mod-wsgi-rs" ] || make build PROFILE="$([ "$profile" = debug ] && echo dev || echo "$profile")"
cp "target/$profile/mod-wsgi-rs" "$out/mod-wsgi-rs"
scripts/worker-files.sh "$out/libmod_wsgi_worker.so" "$out/worker"

. scripts/apr-own.sh
own_apr "$PWD/build/apr"

cat >"$where/httpd" <<END
#!/bin/sh
LD_PRELOAD=$asan:$apr exec $(command -v apache2 || command -v httpd) "\$@"
END
chmod 755 "$where/httpd"

# SIGSEGV stays with those who mean it (tests that crash a worker); leaks are the soak test's matter.
[ $# -gt 0 ] || set -- -k event tests/conformance
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:handle_segv=0:detect_stack_use_after_return=0:${ASAN_OPTIONS:-}"
MWR_PROFILE=$profile MWR_HTTPD=$where/httpd MWR_SO=$out/libmod_wsgi_rs.so exec build/venv/bin/python -m pytest -q "$@"
