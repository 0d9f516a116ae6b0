#!/bin/sh
# Installs what `cargo xtask bench` and `cargo xtask backups` compare with: Patroni (PyPI) in a virtual
# environment, etcd, HAProxy and pgBackRest (Debian). Prints the bin folder of the environment. Does nothing that is done already.
set -eu

# User postgres must be able to read it, so it cannot be below a private home.
where=${SEMPRE_PEERS:-/var/tmp/sempre-peers}
python=/usr/bin/python3

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

missing=
[ -x /usr/bin/etcd ] || missing="$missing etcd-server"
[ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
[ -x /usr/bin/pgbackrest ] || missing="$missing pgbackrest"
[ -x /usr/sbin/nft ] || missing="$missing nftables"
"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    as_root apt-get update -qq >&2
    # shellcheck disable=SC2086 # a list of packages
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
fi

if [ ! -x "$where/bin/patroni" ]; then
    "$python" -m venv "$where" >&2
    "$where/bin/pip" install --quiet 'patroni[etcd3]>=4.1,<4.2' psycopg2-binary >&2
    chmod -R go+rX "$where"
fi
echo "$where/bin"
