#!/bin/sh
# Tests the module for nginx in an nginx that takes every piece of pool memory from malloc (NGX_DEBUG_PALLOC) and runs under
# AddressSanitizer, as does the module: memory that is used after its pool has gone is found. nginx is built from the
# source package of the installed one, in build/nginx-poisoned; nothing is installed.
#   scripts/nginx-poisoned.sh [arguments of pytest]     default: the conformance suite and nginx's own tests
# Root, or sudo, is needed where packages for the build are missing. Takes about 15 minutes on two processors.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
scripts/setup.sh test
scripts/venv.sh
where=$PWD/build/nginx-poisoned
version=$(dpkg-query -W -f '${source:Version}' nginx)
target=$(rustc -vV | sed -n 's/^host: //p')

command -v dpkg-source >/dev/null || {
    as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get install -q -y --no-install-recommends dpkg-dev
}

# The source package, from where this machine has its packages, without a change to its configuration.
if [ ! -f "$where/source/src/core/nginx.c" ]; then
    rm -rf "$where"
    mkdir -p "$where/apt/parts" "$where/apt/state/lists/partial" "$where/apt/cache/archives/partial"
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -f "$f" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$f" >"$where/apt/parts/$(basename "$f")"
    done
    [ ! -f "$where/apt/parts/sources.list" ] || mv "$where/apt/parts/sources.list" "$where/apt/parts/main.list"
    apt="-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$where/apt/parts -o Dir::State=$where/apt/state"
    apt="$apt -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache=$where/apt/cache -o APT::Sandbox::User=root"
    # A mirror may lack the latest security update of the sources: any package of the same upstream release will do.
    # shellcheck disable=SC2086 # words are meant to be split
    (
        cd "$where"
        apt-get $apt update
        upstream=${version%%-*}
        others=$(apt-cache $apt showsrc nginx | sed -n "s/^Version: //p" | grep "^$upstream-" || true)
        for v in "$version" $others; do
            ! apt-get $apt source "nginx=$v" || break
        done
        # without any, the release itself, which comes with each of them
        ls -d nginx-*/ >/dev/null 2>&1 || tar -xf nginx_"$upstream".orig.tar.*z
    )
    mv "$where"/nginx-*/ "$where/source"
fi

# The options of the installed one, so that the module's structures are the same, and the checks.
if [ ! -x "$where/source/objs/nginx" ]; then
    nginx -V 2>&1 | sed -n 's/^configure arguments: //p' >"$where/flags"
    checks="-DNGX_DEBUG_PALLOC=1 -fsanitize=address -fno-omit-frame-pointer -O1 -g -fPIC -Wno-error"
    (
        cd "$where/source"
        # --add-dynamic-module and the paths of the distribution's build are left out
        eval "set -- $(cat "$where/flags")"
        for word; do
            shift
            case $word in
            --with-cc-opt=* | --with-ld-opt=* | --add-dynamic-module=* | --add-module=* | *=dynamic) ;;
            *) set -- "$@" "$word" ;;
            esac
        done
        ./configure "$@" --with-debug --with-cc-opt="$checks" --with-ld-opt=-fsanitize=address >"$where/configure.log"
        make -j"$(nproc)" >"$where/make.log" 2>&1 || { tail -20 "$where/make.log" >&2; exit 1; }
    )
fi
# All of them are there: the sanitizer in nginx, and no pool that hands out pieces of larger blocks.
nm -D "$where/source/objs/nginx" | grep -q __asan_init || { echo "$0: nginx was not built with AddressSanitizer" >&2; exit 1; }

# The module for it, with the sanitizer too (a switch of rustc that is not stable), and what belongs to it.
profile=${MWR_PROFILE:-debug}
[ -f "target/$profile/mod-wsgi-rs" ] || make build PROFILE="$([ "$profile" = debug ] && echo dev || echo "$profile")"
NGINX_SOURCE_DIR=$where/source NGINX_BUILD_DIR=$where/source/objs RUSTC_BOOTSTRAP=1 \
    RUSTFLAGS='-Zsanitizer=address -Cforce-frame-pointers=yes' CARGO_TARGET_DIR=$where/target \
    cargo build --locked --target "$target" -p ngx-http-wsgi-rs
so=$where/target/$target/debug/libngx_http_wsgi_rs_module.so
nm -D "$so" | grep -q ' U __asan_' || { echo "$0: the module was not built with AddressSanitizer" >&2; exit 1; }
# The supervisor is looked for beside the module.
ln -sfn "$PWD/target/$profile/mod-wsgi-rs" "$where/target/$target/debug/mod-wsgi-rs"

[ $# -gt 0 ] || set -- -k nginx tests/conformance tests/nginx
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:max_free_fill_size=65536:free_fill_byte=0xdb
MWR_PROFILE=$profile MWR_NGINX=$where/source/objs/nginx MWR_NGINX_SO=$so exec build/venv/bin/python -m pytest -q "$@"
