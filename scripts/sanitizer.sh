# What asan.sh and tsan.sh share; read by them with the sanitizer's name for rustc in $sanitizer, and the prefix of its symbols
# in $prefix. Everything lies in build/$prefix. The switches of rustc are not stable: RUSTC_BOOTSTRAP=1, for these builds alone.
# shellcheck shell=sh
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
scripts/setup.sh test
scripts/venv.sh
where=$PWD/build/$prefix
target=$(rustc -vV | sed -n 's/^host: //p')
out=$where/target/$target/debug
profile=${MWR_PROFILE:-debug}
mkdir -p "$where"

# cargo COMMAND ARGUMENTS… with the sanitizer
instrumented() {
    command=$1
    shift
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$sanitizer -Cforce-frame-pointers=yes" CARGO_TARGET_DIR=$where/target \
        PYO3_BUILD_EXTENSION_MODULE=1 PYO3_NO_PYTHON=1 cargo "$command" --locked --target "$target" "$@"
}

# gcc's runtime of that name, which is there before anything else: rustc leaves that of a shared library undefined.
runtime() {
    found=$(readlink -f "$(gcc -print-file-name="$1.so")")
    [ -f "$found" ] || { echo "$0: no $1 beside gcc: install $2" >&2; exit 1; }
    echo "$found"
}

# Lays the files out where they are looked for: the libraries named, each instrumented, and an ordinary binary, whose
# threads and parsers are fuzzed.
lay_out() {
    for so in "$@"; do
        nm -D "$out/$so" | grep -q " U __${prefix}_" || { echo "$0: $so was not built with the sanitizer" >&2; exit 1; }
    done
    [ -f "target/$profile/mod-wsgi-rs" ] || make build PROFILE="$([ "$profile" = debug ] && echo dev || echo "$profile")"
    cp "target/$profile/mod-wsgi-rs" "$out/mod-wsgi-rs"
    scripts/worker-files.sh "$out/libmod_wsgi_worker.so" "$out/worker"
}
