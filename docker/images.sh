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

for suite in $suites; do
    docker/base.sh "$suite"
    base=debian:$suite-slim
    build "$name:apache-$suite" --build-arg BASE="$base" --build-arg PRODUCT="$name:product" docker/apache
    build "$name:apache-onbuild-$suite" --build-arg BASE="$name:apache-$suite" --build-arg DEBIAN="$base" docker/onbuild
    [ -n "${NO_BUILDER:-}" ] || build "$name:builder-$suite" --build-arg BASE="$base" -f docker/builder/Dockerfile docker/onbuild
done
for image in apache apache-onbuild builder; do
    ! "$docker" image inspect "$name:$image-$suite" >/dev/null 2>&1 || "$docker" tag "$name:$image-$suite" "$name:$image"
done
"$docker" images --format '{{.Repository}}:{{.Tag}}	{{.Size}}' "$name" | sort
