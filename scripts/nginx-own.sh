# Builds of nginx that tests need beside the installed one, in directories of the project; read by nginx-poisoned.sh and
# nginx-versions.sh, which run in the directory of the project with `set -eu`. Only packages for the build are installed.
# shellcheck shell=sh

# Debian's source package of nginx in $1/source, from where this machine has its packages, without a change to its
# configuration. $2: the version of the package, or of nginx. $3: another suite of Debian to look in (trixie).
own_source() {
    [ ! -f "$1/source/src/core/nginx.c" ] || return 0
    command -v dpkg-source >/dev/null || {
        as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
        $as_root apt-get install -q -y --no-install-recommends dpkg-dev
    }
    rm -rf "$1"
    mkdir -p "$1/apt/parts" "$1/apt/state/lists/partial" "$1/apt/cache/archives/partial"
    (
        cd "$1"
        version=$2 suite=${3:-}
        if [ -n "$suite" ]; then
            # shellcheck disable=SC2016 # the words are apt-get's
            mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
                sed -n 's/^Debian Debian //p' | head -n 1)
            [ -n "$mirror" ] || { echo "$0: this machine has no mirror of Debian to take nginx of $suite from" >&2; exit 1; }
            key=/usr/share/keyrings/debian-archive-keyring.gpg
            echo "deb-src [signed-by=$key] $mirror $suite main" >apt/parts/suite.list
        else
            for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
                [ ! -f "$f" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$f" >"apt/parts/$(basename "$f")"
            done
            [ ! -f apt/parts/sources.list ] || mv apt/parts/sources.list apt/parts/main.list
        fi
        set -- -q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$PWD/apt/parts" \
            -o "Dir::State=$PWD/apt/state" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$PWD/apt/cache" \
            -o APT::Sandbox::User=root
        apt-get "$@" update
        # A mirror may lack the latest security update of the sources: any package of the same upstream release will do.
        upstream=${version%%-*}
        others=$(apt-cache "$@" showsrc nginx | sed -n 's/^Version: //p' | grep "^$upstream-" || true)
        [ "$version" = "$upstream" ] || others="$version $others"
        for v in $others; do
            ! apt-get "$@" source "nginx=$v" || break
        done
        # without any, the release itself, which comes with each of them
        ls -d nginx-*/ >/dev/null 2>&1 || tar -xf nginx_"$upstream".orig.tar.*z
        mv nginx-*/ source
    )
}

# The source of nginx that version $2 of the crate nginx-src holds, in $1/source. Cargo checks what it fetches.
own_crate_source() {
    [ ! -f "$1/source/src/core/nginx.c" ] || return 0
    rm -rf "$1"
    mkdir -p "$1"
    # has cargo fetch this crate alone, and not what it depends on
    cargo info -q "nginx-src@$2" >/dev/null
    tar -C "$1" -xf "${CARGO_HOME:-$HOME/.cargo}"/registry/cache/*/"nginx-src-$2"+*.crate
    mv "$1"/nginx-src-*/nginx "$1/source"
}

# Configures and builds $1/source; the other arguments are those of nginx's configure. Gives $1/source/objs/nginx.
own_nginx() {
    [ ! -x "$1/source/objs/nginx" ] || return 0
    (
        cd "$1/source"
        shift
        [ -x configure ] && configure=./configure || configure=auto/configure
        $configure "$@" >../configure.log || { tail -n 20 ../configure.log >&2; exit 1; }
        make -j"$(nproc)" >../make.log 2>&1 || { tail -n 20 ../make.log >&2; exit 1; }
    )
}

# Builds the module for the nginx in $1, as $1/module/$module_name, with the target directory $2 of cargo, which leaves it
# in $3; the other arguments are cargo's.
own_module() {
    (
        where=$1 target=$2 out=$3
        shift 3
        export NGINX_SOURCE_DIR="$where/source" NGINX_BUILD_DIR="$where/source/objs" CARGO_TARGET_DIR="$target"
        cargo build --locked -p ngx-http-wsgi-rs "$@"
        mkdir -p "$where/module"
        cp "$out/libngx_http_wsgi_rs_module.so" "$where/module/$module_name"
        # The supervisor is looked for beside the module.
        ln -sfn "$PWD/target/$profile/mod-wsgi-rs" "$where/module/mod-wsgi-rs"
    )
}

# The supervisor and workers that go with every module.
own_rest() {
    [ -f "target/$profile/mod-wsgi-rs" ] || make build PROFILE="$([ "$profile" = debug ] && echo dev || echo "$profile")"
}

scripts/setup.sh test
scripts/venv.sh
profile=${MWR_PROFILE:-debug}
module_name=ngx_http_wsgi_rs_module.so
