#!/bin/sh
# Tests the module for nginx in an nginx that takes every piece of pool memory from malloc (NGX_DEBUG_PALLOC) and runs under
# AddressSanitizer, as does the module: memory that is used after its pool has gone is found. nginx is built from the
# source package of the installed one, in build/nginx-poisoned; nothing is installed.
#   scripts/nginx-poisoned.sh [arguments of pytest]     default: the conformance suite and nginx's own tests
# Root, or sudo, is needed where packages for the build are missing. Takes about 15 minutes on two processors.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
. scripts/nginx-own.sh
where=$PWD/build/nginx-poisoned
version=$(dpkg-query -W -f '${source:Version}' nginx)
target=$(rustc -vV | sed -n 's/^host: //p')

own_source "$where" "$version"

# The options of the installed one, so that the module's structures are the same, and the checks.
checks="-DNGX_DEBUG_PALLOC=1 -fsanitize=address -fno-omit-frame-pointer -O1 -g -fPIC -Wno-error"
(
    # --add-dynamic-module and the paths of the distribution's build are left out
    eval "set -- $(nginx -V 2>&1 | sed -n 's/^configure arguments: //p')"
    for word; do
        shift
        case $word in
        --with-cc-opt=* | --with-ld-opt=* | --add-dynamic-module=* | --add-module=* | *=dynamic) ;;
        *) set -- "$@" "$word" ;;
        esac
    done
    own_nginx "$where" "$@" --with-debug --with-cc-opt="$checks" --with-ld-opt=-fsanitize=address
)
# All of them are there: the sanitizer in nginx, and no pool that hands out pieces of larger blocks.
nm -D "$where/source/objs/nginx" | grep -q __asan_init || { echo "$0: nginx was not built with AddressSanitizer" >&2; exit 1; }

# The module for it, with the sanitizer too (a switch of rustc that is not stable), and what belongs to it.
own_rest
(
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address -Cforce-frame-pointers=yes'
    own_module "$where" "$where/target" "$where/target/$target/debug" --target "$target"
)
so=$where/module/$module_name
nm -D "$so" | grep -q ' U __asan_' || { echo "$0: the module was not built with AddressSanitizer" >&2; exit 1; }

[ $# -gt 0 ] || set -- -k nginx tests/conformance tests/nginx
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:max_free_fill_size=65536:free_fill_byte=219
MWR_PROFILE=$profile MWR_NGINX=$where/source/objs/nginx MWR_NGINX_SO=$so exec build/venv/bin/python -m pytest -q "$@"
