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

# APR with pools that can be watched, from the source package of the installed one.
apr=$where/apr/.libs/libapr-1.so.0
if [ ! -f "$apr" ]; then
    command -v dpkg-source >/dev/null || {
        as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
        $as_root apt-get install -q -y --no-install-recommends dpkg-dev
    }
    rm -rf "$where/apt" "$where/apr"
    mkdir -p "$where/apt/parts" "$where/apt/state/lists/partial" "$where/apt/cache/archives/partial"
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -f "$f" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$f" >"$where/apt/parts/$(basename "$f")"
    done
    [ ! -f "$where/apt/parts/sources.list" ] || mv "$where/apt/parts/sources.list" "$where/apt/parts/main.list"
    apt="-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$where/apt/parts -o Dir::State=$where/apt/state"
    apt="$apt -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache=$where/apt/cache -o APT::Sandbox::User=root"
    version=$(dpkg-query -W -f '${source:Version}' libapr1 2>/dev/null || dpkg-query -W -f '${source:Version}' libapr1t64)
    # shellcheck disable=SC2086 # words are meant to be split
    (cd "$where/apt" && apt-get $apt update && apt-get $apt source "apr=$version")
    mv "$where"/apt/apr-*/ "$where/apr"
    (
        cd "$where/apr"
        # as Debian configures it, as far as its layout of structures goes
        ./configure --enable-pool-debug=yes --enable-allocator-uses-mmap --with-devrandom=/dev/urandom \
            --enable-other-child CFLAGS='-O1 -g -fno-omit-frame-pointer' >configure.log 2>&1
        make -j"$(nproc)" >make.log 2>&1 || { tail -20 make.log >&2; exit 1; }
    )
fi
nm -D "$apr" | grep -q ' T apr_palloc_debug' || { echo "$0: APR was not built with pool debugging" >&2; exit 1; }

cat >"$where/httpd" <<END
#!/bin/sh
LD_PRELOAD=$asan:$apr exec $(command -v apache2 || command -v httpd) "\$@"
END
chmod 755 "$where/httpd"

# SIGSEGV stays with those who mean it (tests that crash a worker); leaks are the soak test's matter.
[ $# -gt 0 ] || set -- -k event tests/conformance
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:handle_segv=0:detect_stack_use_after_return=0:${ASAN_OPTIONS:-}"
MWR_PROFILE=$profile MWR_HTTPD=$where/httpd MWR_SO=$out/libmod_wsgi_rs.so exec build/venv/bin/python -m pytest -q "$@"
