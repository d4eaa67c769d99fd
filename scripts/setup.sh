#!/bin/sh
# Makes the virtual environment: `sh scripts/setup.sh DIR [EXTRAS]`, with the extras of pyproject.toml that are named, or `dev`.
# Idempotent; `make setup` skips it while pyproject.toml is unchanged.
set -eu
venv=${1:?usage: setup.sh DIR [EXTRAS]}
extras=${2:-dev}

usable() {
    # A Python that is new enough and can make a virtual environment by itself.
    "$1" -c 'import sys, ensurepip, venv, sqlite3, ssl; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if usable "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

if ! python=$(find_python); then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing Python and its venv module from the distribution"
        apt-get update -qq && apt-get install -y -qq python3 python3-venv >/dev/null
        python=$(find_python) || { echo "setup: the distribution's Python is older than 3.11" >&2; exit 1; }
    else
        echo "setup: needs Python >= 3.11 with its venv module (Debian: apt-get install python3-venv)" >&2
        exit 1
    fi
fi

# An environment whose interpreter is gone or unreadable is of no use: make it anew.
if ! "$venv/bin/python" -c 'import sys' 2>/dev/null; then
    rm -rf "$venv"
    echo "setup: making $venv with $python"
    "$python" -m venv "$venv"
fi
echo "setup: installing p2player and its tools into $venv ($extras)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
