#!/bin/sh
# Sees to it that the images the Dockerfiles begin with are there: docker/base.sh [bookworm|trixie|rust]…
# Each is pulled as anybody would; only where no registry can be reached is it made here, under the same tag: Debian with
# debootstrap, slimmed as the official image is, Rust from the toolchain of this machine. Certificates this machine trusts
# beside Debian's (/usr/local/share/ca-certificates) go into a base made here, so that builds reach what this machine reaches.
set -eu

docker=${DOCKER:-docker}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
rust=rust:${RUST_VERSION:-1.95}-slim-bookworm

have() { "$docker" image inspect "$1" >/dev/null 2>&1; }
# Asking a registry may take long where there is none; once is enough.
pull() {
    [ "${MWR_NO_REGISTRY:-}" != 1 ] && timeout 300 "$docker" pull -q "$1" >/dev/null 2>&1
}

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo env"

debian() {
    suite=$1
    tag=debian:$suite-slim
    have "$tag" && return 0
    pull "$tag" && return 0
    echo "No registry gives $tag: making it with debootstrap"
    command -v debootstrap >/dev/null || {
        echo "$0: debootstrap is missing: apt-get install debootstrap" >&2
        exit 1
    }
    work=$(mktemp -d)
    trap '$as_root rm -rf "$work"' EXIT
    root=$work/root
    $as_root debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        exit 1
    }
    $as_root sh -s -- "$root" "$suite" "$mirror" "$security" <<'INSIDE'
set -eu
root=$1 suite=$2 mirror=$3 security=$4
cat >"$root/etc/dpkg/dpkg.cfg.d/docker" <<'CFG'
force-unsafe-io
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
CFG
cat >"$root/etc/apt/apt.conf.d/docker" <<'CFG'
APT::AutoRemove::SuggestsImportant "false";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
CFG
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
rm -f "$root/etc/apt/sources.list"
mkdir -p "$root/etc/apt/sources.list.d"
for part in "$mirror $suite $suite-updates" "$security $suite-security"; do
    set -- $part
    uri=$1
    shift
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n' "$uri" "$*"
done >"$root/etc/apt/sources.list.d/debian.sources"
if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
    cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
fi
find "$root/usr/share/doc" -mindepth 1 ! -name copyright ! -type d -delete
find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
rm -rf "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/usr/share/info/* "$root"/usr/share/lintian \
    "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
    "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/ldconfig/aux-cache
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
INSIDE
    $as_root tar -C "$root" --numeric-owner -c . | "$docker" import -c 'CMD ["bash"]' - "$tag" >/dev/null
    $as_root rm -rf "$work"
    trap - EXIT
}

toolchain() {
    have "$rust" && return 0
    pull "$rust" && return 0
    echo "No registry gives $rust: making it from the toolchain of this machine"
    debian bookworm
    sysroot=$(rustc --print sysroot)
    version=$(rustc --version | cut -d' ' -f2)
    container=$("$docker" create debian:bookworm-slim sh -c \
        'apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends ca-certificates gcc libc6-dev && rm -rf /var/lib/apt/lists/*')
    trap '"$docker" rm -f "$container" >/dev/null' EXIT
    "$docker" start -a "$container" >/dev/null
    tar -C "$sysroot" --owner=0 --group=0 --exclude=share/doc --exclude=share/man --exclude=lib/rustlib/src \
        --transform 's,^\.,usr/local,' -ch ./bin/cargo ./bin/rustc ./lib | "$docker" cp - "$container:/"
    "$docker" commit -c 'CMD ["bash"]' -c "ENV RUST_VERSION=$version CARGO_HOME=/usr/local/cargo" "$container" "$rust" >/dev/null
    "$docker" rm -f "$container" >/dev/null
    trap - EXIT
}

for name in ${@:-bookworm trixie rust}; do
    case $name in
    bookworm | trixie) debian "$name" ;;
    rust) toolchain ;;
    *)
        echo "usage: $0 [bookworm|trixie|rust]..." >&2
        exit 2
        ;;
    esac
done
