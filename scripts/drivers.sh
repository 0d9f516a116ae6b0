#!/bin/sh
# Installs the client drivers of other languages that are tested against the routed port: psycopg 3
# and asyncpg (PyPI) in a virtual environment, node-postgres (npm) where Node.js is or can be had.
# Prints the folder. Does nothing that is done already.
set -eu

where=${SEMPRE_DRIVERS:-/var/tmp/sempre-drivers}
python=/usr/bin/python3

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

missing=
"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
command -v npm >/dev/null 2>&1 || missing="$missing nodejs npm"
if [ -n "$missing" ]; then
    as_root apt-get update -qq >&2
    # shellcheck disable=SC2086 # a list of packages
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
fi

if [ ! -e "$where/python-ready" ]; then
    "$python" -m venv "$where" >&2
    "$where/bin/pip" install --quiet 'psycopg[binary]>=3.2,<3.4' 'asyncpg>=0.30,<0.32' >&2
    touch "$where/python-ready"
fi
if [ ! -e "$where/node-ready" ]; then
    npm install --silent --no-audit --no-fund --prefix "$where" pg@8 >&2
    touch "$where/node-ready"
fi
echo "$where"
