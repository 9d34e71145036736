# APR with pools that can be watched, for the scripts that look for faults of memory and for races; read by them with `set -eu`
# in the directory of the project.
# shellcheck shell=sh

# From the source package of the installed one, in $1. Gives the library's path in $apr: each piece of a pool is one of malloc's
# and goes back to it when the pool is cleared.
own_apr() {
    apr=$1/source/.libs/libapr-1.so.0
    if [ ! -f "$apr" ]; then
        command -v dpkg-source >/dev/null || {
            as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
            $as_root apt-get install -q -y --no-install-recommends dpkg-dev
        }
        rm -rf "$1"
        mkdir -p "$1/apt/parts" "$1/apt/state/lists/partial" "$1/apt/cache/archives/partial"
        for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
            [ ! -f "$f" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$f" >"$1/apt/parts/$(basename "$f")"
        done
        [ ! -f "$1/apt/parts/sources.list" ] || mv "$1/apt/parts/sources.list" "$1/apt/parts/main.list"
        apt="-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$1/apt/parts -o Dir::State=$1/apt/state"
        apt="$apt -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache=$1/apt/cache -o APT::Sandbox::User=root"
        version=$(dpkg-query -W -f '${source:Version}' libapr1 2>/dev/null || dpkg-query -W -f '${source:Version}' libapr1t64)
        # shellcheck disable=SC2086 # words are meant to be split
        (cd "$1/apt" && apt-get $apt update && apt-get $apt source "apr=$version")
        mv "$1"/apt/apr-*/ "$1/source"
        (
            cd "$1/source"
            # as Debian configures it, as far as its layout of structures goes
            ./configure --enable-pool-debug=yes --enable-allocator-uses-mmap --with-devrandom=/dev/urandom \
                --enable-other-child CFLAGS='-O1 -g -fno-omit-frame-pointer' >configure.log 2>&1
            make -j"$(nproc)" >make.log 2>&1 || { tail -20 make.log >&2; exit 1; }
        )
    fi
    nm -D "$apr" | grep -q ' T apr_palloc_debug' || { echo "$0: APR was not built with pool debugging" >&2; exit 1; }
}
