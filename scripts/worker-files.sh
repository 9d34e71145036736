#!/bin/sh
# Puts the files of a worker where the binary looks for them: scripts/worker-files.sh LIBRARY DESTINATION [FINAL]
# FINAL: where DESTINATION will lie once it is installed, for the paths in tracebacks.
# Compiles the Python half for the interpreters found in /usr/bin, /usr/local/bin and on PATH: at run time the directory
# is not writable for workers, who would otherwise compile it at each start.
set -eu

library=$1
destination=$2
final=${3:-$destination}
source=$(cd "$(dirname "$0")/../worker/python" && pwd)

rm -rf "$destination.new"
mkdir -p "$destination.new/mod_wsgi_rs"
install -m 644 "$source/bootstrap.py" "$destination.new/bootstrap.py"
install -m 755 "$library" "$destination.new/_worker.abi3.so"
for file in "$source"/mod_wsgi_rs/*.py; do
    install -m 644 "$file" "$destination.new/mod_wsgi_rs/"
done

done_for=
for python in /usr/bin/python3.[0-9]* /usr/local/bin/python3.[0-9]* "$(command -v python3 || true)"; do
    [ -x "$python" ] || continue
    tag=$("$python" -I -c 'import sys; print(sys.implementation.cache_tag if sys.version_info >= (3, 10) else "")' 2>/dev/null) || continue
    case " $done_for " in *" $tag "*) continue ;; esac
    [ -n "$tag" ] || continue
    done_for="$done_for $tag"
    # Unchecked: the file times of an installation say nothing.
    "$python" -I -m compileall -q --invalidation-mode unchecked-hash -s "$destination.new" -p "$final" "$destination.new/mod_wsgi_rs"
done

rm -rf "$destination"
mv "$destination.new" "$destination"
