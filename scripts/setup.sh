#!/usr/bin/env bash
# Installs what this machine lacks, from its own packages. Does nothing the second time, and never
# touches a PostgreSQL cluster that is there.
#
#   scripts/setup.sh          what `make demo` needs: PostgreSQL, and tools to build
#   scripts/setup.sh --test   and what `make test` needs
#
# SEMPRE_PG_BIN=/path/bin names a PostgreSQL that is installed elsewhere.
set -euo pipefail

for_test=false
case "${1:-}" in
    "") ;;
    --test) for_test=true ;;
    *) echo "usage: $0 [--test]" >&2; exit 2 ;;
esac

export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { echo "setup: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

if ! have cargo; then
    say "Rust is not installed: see https://rustup.rs"
    exit 1
fi

have_postgresql() {
    if [ -n "${SEMPRE_PG_BIN:-}" ]; then
        [ -x "$SEMPRE_PG_BIN/postgres" ] && return
        say "SEMPRE_PG_BIN is $SEMPRE_PG_BIN, and there is no postgres in it"
        exit 1
    fi
    local version
    for version in 18 17 16 15 14; do
        [ -x "/usr/lib/postgresql/$version/bin/postgres" ] && return
        [ -x "/usr/pgsql-$version/bin/postgres" ] && return
    done
    have postgres && have pg_basebackup
}

missing=()
postgresql=false
have_postgresql || postgresql=true
have psql || [ -x "${SEMPRE_PG_BIN:-}/psql" ] || [ "$postgresql" = true ] || missing+=(postgresql-client)
have cc || missing+=(gcc libc6-dev)
have make || missing+=(make)
if [ "$for_test" = true ]; then
    have ip || missing+=(iproute2)
    have nft || missing+=(nftables)
    have sysctl || missing+=(procps)
    have mkfs.ext4 || missing+=(e2fsprogs)
    have unshare || missing+=(util-linux)
    have script || missing+=(bsdutils)
    have faketime || missing+=(faketime)
    have fusermount3 || missing+=(fuse3)
    have restic || missing+=(restic)
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
    root=(sudo)
fi

install() {
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" \
        </dev/null >&2
}

if [ "$postgresql" = true ] || [ "${#missing[@]}" -gt 0 ]; then
    wanted=("${missing[@]}")
    if [ "$postgresql" = true ]; then wanted+=(postgresql); fi
    if ! have apt-get; then
        say "please install: ${wanted[*]} (this script knows Debian and Ubuntu only)"
        exit 1
    fi
    if [ "${#root[@]}" -gt 0 ] && ! have sudo; then
        say "please install as root: ${wanted[*]}"
        if [ "$postgresql" = true ]; then
            say "or name an installation of PostgreSQL with SEMPRE_PG_BIN=/path/bin"
        fi
        exit 1
    fi
    say "installing ${wanted[*]}"
    "${root[@]}" apt-get update -q </dev/null >&2 || say "the package lists could not be refreshed; going on"
    if [ "${#missing[@]}" -gt 0 ]; then install "${missing[@]}"; fi
fi

if [ "$postgresql" = true ]; then
    # Debian starts a cluster of its own on port 5432 when the package is installed. Nobody asked
    # for that here. The setting is taken back: it is the machine's, not ours.
    dropin=/etc/postgresql-common/createcluster.d/sempre-setup.conf
    "${root[@]}" mkdir -p "${dropin%/*}"
    echo "create_main_cluster = false" | "${root[@]}" tee "$dropin" >/dev/null
    trap '"${root[@]}" rm -f "$dropin"' EXIT
    install postgresql
    if have pg_lsclusters; then
        # There was no server before, so what runs now was started by the package.
        pg_lsclusters -h | while read -r version name _ status _; do
            case "$status" in
                online*) "${root[@]}" pg_ctlcluster "$version" "$name" stop || true ;;
            esac
        done
    fi
fi

# Tools of the tests that no Debian package has. Without them the tests still run: cargo-nextest is
# replaced by `cargo test`, and the check of the dependencies counts as skipped.
cargo_tool() {
    have "cargo-$1" && return
    say "building cargo-$1 $2"
    cargo install --quiet --locked "cargo-$1@$2" </dev/null >&2 || say "cargo-$1 could not be built; going on without"
}
# Where no udev is, only root may open it; everywhere else everybody may.
if [ "$for_test" = true ] && [ -c /dev/fuse ]; then
    "${root[@]}" chmod 0666 /dev/fuse || say "/dev/fuse is for root only; restoring by other users fails"
fi

if [ "$for_test" = true ]; then
    cargo_tool nextest 0.9.143
    cargo_tool deny 0.20.2
    # Clients of other languages, for the tests of what they see.
    "$(dirname "$0")/drivers.sh" >/dev/null || say "client drivers could not be installed; their test will fail"
fi
