#!/bin/sh
# Tests the module for httpd and the worker's extension under AddressSanitizer, in an Apache whose pools take every piece
# from malloc and give it back when they are cleared (APR's own --enable-pool-debug): memory of ours or of httpd's that is
# used after its pool has gone is found. For nginx see scripts/nginx-poisoned.sh. Everything lies in build/asan; nothing is installed
# but packages for the build.
#   scripts/asan.sh [arguments of pytest]     default: the conformance suite on event
set -eu
sanitizer=address prefix=asan
. "$(dirname "$0")/sanitizer.sh"

# Both speak version 8 of the interface.
asan=$(runtime libasan libasan8)
instrumented build -p mod-wsgi-rs -p mod-wsgi-worker
lay_out libmod_wsgi_rs.so libmod_wsgi_worker.so

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
