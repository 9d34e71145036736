#!/bin/sh
# Builds the images: docker/images.sh [SUITE]… ("bookworm trixie" unless told). The last suite also gets the plain names, such
# as mod-wsgi-rs:apache.
# Environment: DOCKER (docker), NAME (mod-wsgi-rs), PREBUILT (a directory as `make install DESTDIR=…` writes it, taken
# instead of compiling in an image), NO_BUILDER (1: leave out the builder), BUILD_ARGS (further arguments of every build).
set -eu
cd "$(dirname "$0")/.."

docker=${DOCKER:-docker}
name=${NAME:-mod-wsgi-rs}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
suites=${*:-bookworm trixie}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

build() {
    echo "Building $1"
    tag=$1
    shift
    # shellcheck disable=SC2086 # words are meant to be split
    "$docker" build ${BUILD_ARGS:-} --build-arg VERSION="$version" --build-arg REVISION="$revision" -t "$tag" "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        exit 1
    }
}

if [ -n "${PREBUILT:-}" ]; then
    tar -C "$PREBUILT" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -c . | "$docker" import - "$name:product" >/dev/null
else
    docker/base.sh rust
    build "$name:product" -f docker/product/Dockerfile .
fi

# The module for a Debian's nginx, as an image of its own: a module fits one version of nginx.
nginx_module() {
    module=$name:nginx-module-$suite
    if [ -z "${PREBUILT:-}" ]; then
        build "$module" --build-arg BASE="$base" -f docker/nginx-module/Dockerfile .
        return
    fi
    # What was built on this machine fits the nginx of this machine; for another one the module is built here, too.
    file=$PREBUILT/usr/local/lib/mod-wsgi-rs/ngx_http_wsgi_rs_module.so
    if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" != "$suite" ] || [ ! -f "$file" ]; then
        build "$name:nginx-headers-$suite" --build-arg BASE="$base" --target headers -f docker/nginx-module/Dockerfile .
        place=${CARGO_TARGET_DIR:-target}/nginx-$suite
        mkdir -p "$place"
        rm -rf "$place/nginx"
        container=$("$docker" create "$name:nginx-headers-$suite" true)
        "$docker" cp "$container:/nginx" "$place/nginx" >/dev/null
        "$docker" rm "$container" >/dev/null
        NGINX_SOURCE_DIR=$(cd "$place/nginx" && pwd) \
            cargo build -q --locked -p ngx-http-wsgi-rs --target-dir "$place" >"$log" 2>&1 || {
            cat "$log" >&2
            exit 1
        }
        file=$place/debug/libngx_http_wsgi_rs_module.so
    fi
    tar -C "$(dirname "$file")" --transform 's,.*,usr/local/lib/mod-wsgi-rs/ngx_http_wsgi_rs_module.so,' --mtime=@0 \
        --owner=0 --group=0 --numeric-owner -c "$(basename "$file")" | "$docker" import - "$module" >/dev/null
}

for suite in $suites; do
    docker/base.sh "$suite"
    base=debian:$suite-slim
    build "$name:apache-$suite" --build-arg BASE="$base" --build-arg PRODUCT="$name:product" docker/server
    nginx_module
    build "$name:nginx-$suite" --build-arg BASE="$base" --build-arg PRODUCT="$name:product" --build-arg SERVER=nginx \
        --build-arg SERVER_PACKAGE=nginx --build-arg MODULE="$module" \
        --build-arg MODULE_FILE=ngx_http_wsgi_rs_module.so docker/server
    for server in apache nginx; do
        build "$name:$server-onbuild-$suite" --build-arg BASE="$name:$server-$suite" --build-arg DEBIAN="$base" docker/onbuild
    done
    [ -n "${NO_BUILDER:-}" ] || build "$name:builder-$suite" --build-arg BASE="$base" -f docker/builder/Dockerfile docker/onbuild
done
for image in apache apache-onbuild nginx nginx-onbuild builder; do
    ! "$docker" image inspect "$name:$image-$suite" >/dev/null 2>&1 || "$docker" tag "$name:$image-$suite" "$name:$image"
done
"$docker" images --format '{{.Repository}}:{{.Tag}}	{{.Size}}' "$name" | sort
