#!/bin/sh
# Tests the module in other builds of nginx than the installed one, each made in build/nginx-versions; nothing is installed.
#   scripts/nginx-versions.sh [BUILD...] [-- ARGUMENTS OF PYTEST]    default: all of them, with nginx's own tests
#     1.26       that of Debian 13, from a mirror of Debian; with HTTP/3
#     1.28       from crates.io (crate nginx-src); with HTTP/3
#     no-cache   that release configured --without-http-cache
# Root, or sudo, is needed where packages for the build are missing.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin"
. scripts/nginx-own.sh
builds=$PWD/build/nginx-versions
wanted=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    wanted="$wanted $1"
    shift
done
[ $# -eq 0 ] || shift
[ -n "$wanted" ] || wanted="1.26 1.28 no-cache"
crate=1.28.5

# The client of HTTP/3.
build/venv/bin/python -m pip install -q --disable-pip-version-check -r tests/requirements-http3.txt
own_rest
failed=
for build in $wanted; do
    where=$builds/$build
    # as in packages, but for the log that nginx writes before it has read its configuration
    set_of="--with-compat --with-debug --with-threads --error-log-path=stderr --with-http_ssl_module --with-http_v2_module"
    set_of="$set_of --with-http_realip_module --with-http_auth_request_module --with-http_addition_module"
    set_of="$set_of --with-http_sub_module"
    case $build in
    1.26) own_source "$where" 1.26.3 trixie; set_of="$set_of --with-http_v3_module" ;;
    1.28) own_crate_source "$where" "$crate"; set_of="$set_of --with-http_v3_module" ;;
    no-cache) own_crate_source "$where" "$crate"; set_of="$set_of --without-http-cache" ;;
    *) echo "$0: no build '$build': 1.26, 1.28 or no-cache" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2086 # words are meant to be split
    own_nginx "$where" $set_of
    own_module "$where" "$builds/target" "$builds/target/debug"
    echo "nginx $build: $("$where/source/objs/nginx" -v 2>&1)"
    (
        [ $# -gt 0 ] || set -- -m "long or not long" tests/nginx
        export MWR_PROFILE="$profile" MWR_NGINX="$where/source/objs/nginx" MWR_NGINX_SO="$where/module/$module_name"
        build/venv/bin/python -m pytest -q "$@"
    ) || failed="$failed $build"
done
[ -z "$failed" ] || { echo "$0: tests failed with nginx$failed" >&2; exit 1; }
