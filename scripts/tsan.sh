#!/bin/sh
# Looks for races with ThreadSanitizer: first the Rust tests of the shared table and of the core, then the module for httpd
# (event: many threads in a process) and the worker's extension, behind httpd and nginx, in tests against real servers. The standard library is
# built with it too (component rust-src): without that it cannot see what keeps threads apart. Everything lies in build/tsan.
#   scripts/tsan.sh [arguments of pytest]     default: concurrency, streaming, bodies, leaving and failing, on event and nginx
# httpd and Python are ordinary ones: what they do with pthreads is seen, their memory is not, so that a report counts where
# code of ours takes part in it.
set -eu
sanitizer=thread prefix=tsan
. "$(dirname "$0")/sanitizer.sh"
[ -f "$(rustc --print sysroot)/lib/rustlib/src/rust/library/std/src/lib.rs" ] || rustup component add rust-src

instrumented test -Zbuild-std -q -p mod-wsgi-scoreboard --test stress
instrumented test -Zbuild-std -q -p mod-wsgi-core --lib
[ -f /usr/share/nginx/src/configure ] && nginx=libngx_http_wsgi_rs_module.so || nginx=
instrumented build -Zbuild-std -p mod-wsgi-rs -p mod-wsgi-worker ${nginx:+-p ngx-http-wsgi-rs}

# rustc's own runtime cannot be loaded as a library; gcc's lacks three names.
tsan=$(runtime libtsan libtsan2)
cc -shared -fPIC -O1 -fno-builtin -x c -o "$where/names.so" - <<END
#include <string.h>
void *__tsan_memcpy(void *to, const void *from, size_t n) { return memcpy(to, from, n); }
void *__tsan_memmove(void *to, const void *from, size_t n) { return memmove(to, from, n); }
void *__tsan_memset(void *to, int byte, size_t n) { return memset(to, byte, n); }
END
# shellcheck disable=SC2086 # one word, or none
lay_out libmod_wsgi_rs.so libmod_wsgi_worker.so $nginx
# httpd hands memory of pools from one thread to another by means that are not seen: with pieces of malloc's it is.
. scripts/apr-own.sh
own_apr "$PWD/build/apr"
wrapped() {
    printf '#!/bin/sh\nLD_PRELOAD=%s exec setarch -R %s "$@"\n' "$tsan:$where/names.so$3" "$2" >"$where/$1"
    chmod 755 "$where/$1"
}
wrapped httpd "$(command -v apache2 || command -v httpd)" ":$apr"
[ -z "$nginx" ] || wrapped nginx "$(command -v nginx)" ""

rm -rf "$where/reports"
mkdir -m 1777 "$where/reports"
chmod 1777 "$where/reports"
[ $# -gt 0 ] || set -- -k "event or nginx" tests/conformance/test_concurrency.py tests/conformance/test_streaming.py \
    tests/conformance/test_body.py tests/conformance/test_truncation.py tests/apache/test_leaving.py tests/apache/test_failures.py \
    tests/nginx/test_clients.py
export TSAN_OPTIONS="log_path=$where/reports/r exitcode=0 handle_segv=0 die_after_fork=0 report_signal_unsafe=0 ${TSAN_OPTIONS:-}"
status=0
MWR_PROFILE=$profile MWR_HTTPD=$where/httpd MWR_SO=$out/libmod_wsgi_rs.so MWR_NGINX=$where/nginx \
    MWR_NGINX_SO=$out/libngx_http_wsgi_rs_module.so build/venv/bin/python -m pytest -q "$@" || status=$?

# Each report is a block between two lines of "==="; the tests have one worker file per process.
awk 'BEGIN { RS = "==================\n" } /WARNING: ThreadSanitizer/ && /(mod_wsgi_rs|wsgi_rs_module|_worker\.abi3)/' \
    "$where"/reports/* >"$where/ours" 2>/dev/null || true
echo "reports: $(cat "$where"/reports/* 2>/dev/null | grep -c 'WARNING: ThreadSanitizer'), with code of ours: $(grep -c 'WARNING: ThreadSanitizer' "$where/ours")"
[ ! -s "$where/ours" ] || { head -n 100 "$where/ours"; exit 1; }
exit "$status"
