#!/bin/sh
# Installs what a step needs and this machine lacks: scripts/setup.sh build|run|test|bench
# With apt (Debian 12 and later, Ubuntu), through sudo when not root. Without apt it says what is needed and fails.
# When nothing is missing it is quick and needs no network.
set -eu

build="gcc make libc6-dev apache2-dev libclang-dev python3"
run="apache2-bin python3"
test="$build $run python3-venv curl openssl binutils procps"
# Tests that need one of these are skipped, with the reason, where the distribution has no such package.
wanted="strace bindfs chromium chromium-driver"
bench="$test python3-dev libev-dev wrk"
# The module for nginx is built and tested where these can be had; nothing else needs them.
nginx_build="nginx-dev libpcre2-dev libssl-dev zlib1g-dev"
nginx_test="$nginx_build nginx-light"
# With a source tree of its own it needs no package of the distribution's.
[ -z "${NGINX_SOURCE_DIR:-}" ] || nginx_build='' nginx_test=''

# Where no registry gives the images that ours begin with, they are made (docker/base.sh).
! command -v docker >/dev/null 2>&1 || test="$test debootstrap"

case "${1:-}" in
build) packages=$build wanted=$nginx_build ;;
run) packages=$run wanted='' ;;
test) packages=$test wanted="$wanted $nginx_test" ;;
bench) packages=$bench wanted=$nginx_test ;;
*)
    echo "usage: $0 build|run|test|bench" >&2
    exit 2
    ;;
esac

# Rust comes from rustup; it is not looked for where only Apache and Python are needed.
if [ "$1" != run ] && ! command -v cargo >/dev/null 2>&1 && [ ! -x "${HOME:-}/.cargo/bin/cargo" ]; then
    echo "$0: cargo is missing; install Rust 1.88 or later with rustup" >&2
    exit 1
fi

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    missing=
    has python3 || missing="$missing python3 (3.10 or later, with venv)"
    has apache2 || has httpd || missing="$missing Apache-httpd-2.4"
    if [ "$1" != run ]; then
        has gcc || has cc || missing="$missing a-C-compiler"
        has make || missing="$missing make"
        has apxs || has apxs2 || missing="$missing apxs-and-headers-of-Apache (httpd-devel)"
    fi
    if [ -n "$missing" ]; then
        echo "$0: no apt here; install these with your package manager:$missing" >&2
        [ "$1" = run ] || echo "$0: building also needs libclang (clang-devel)" >&2
        exit 1
    fi
    exit 0
fi

missing=
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" != installed ] || continue
    # A package list that is empty (a fresh container) says nothing: then all are tried below, after the update.
    if [ -z "$(apt-cache policy apt 2>/dev/null | grep http)" ] ||
        apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]'; then
        optional="${optional:-} $package"
    fi
done
[ -n "$missing${optional:-}" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        if [ -z "$missing" ]; then
            echo "$0: not root and no sudo; what needs these is left out:$optional" >&2
            exit 0
        fi
        echo "$0: not root and no sudo; as root run: apt-get install$missing" >&2
        exit 1
    fi
    as_root="sudo env"
else
    as_root=env
fi
echo "Installing:$missing${optional:-}"
# shellcheck disable=SC2086 # words are meant to be split
{
    $as_root DEBIAN_FRONTEND=noninteractive apt-get update -q
    [ -z "$missing" ] ||
        $as_root DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
    for package in ${optional:-}; do
        $as_root DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$package" ||
            echo "$0: no $package here: what needs it is left out"
    done
}
