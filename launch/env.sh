#!/usr/bin/env bash
# Makes .venv in the project's folder, from the pinned versions in requirements.lock.
#
#   launch/env.sh          make it, or see in a moment that it is there and whole
#   launch/env.sh --lock   write requirements.lock anew, with today's newest versions
#
# demo.sh and test.sh call this first, so there is no reason to. A first call takes about two
# minutes, most of it the download. Set PYTHON to choose the interpreter (3.12 or newer).
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
lock=$root/launch/requirements.lock
LOCK_WAIT_S=1800

say() { printf 'env: %s\n' "$*" >&2; }

# Runs the rest of its arguments, quietly, and says how long that took.
phase() {
    local what=$1 start=$SECONDS
    shift
    "$@" </dev/null || { say "$what failed after $((SECONDS - start)) s; its own words are above"; return 1; }
    say "$what: $((SECONDS - start)) s"
}

# The path of the interpreter behind $1, if it is one we can use. Version managers put shims on
# PATH that exist and fail, and some systems ship a python that cannot make a virtual environment:
# only running it tells.
usable() {
    "$1" -I -c '
import sys, sysconfig
assert sys.version_info >= (3, 12) and not sysconfig.get_config_var("Py_GIL_DISABLED")
import venv, ensurepip
print(getattr(sys, "_base_executable", None) or sys.executable)
' 2>/dev/null </dev/null
}

candidates() {
    [ -z "${PYTHON:-}" ] || printf '%s\n' "$PYTHON"
    printf '%s\n' python3.13 python3.12 python3
    shopt -s nullglob
    printf '%s\n' \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python \
        "${CONDA_PREFIX:-/nonexistent}"/bin/python \
        "$HOME"/{miniconda3,anaconda3,miniforge3,mambaforge,micromamba,.conda}/{bin/python,envs/*/bin/python} \
        /opt/{conda,miniconda3,miniforge3}/{bin/python,envs/*/bin/python} \
        "${MISE_DATA_DIR:-$HOME/.local/share/mise}"/installs/python/*/bin/python \
        "${ASDF_DATA_DIR:-$HOME/.asdf}"/installs/python/*/bin/python
}

find_python() {
    local candidate
    while read -r candidate; do
        usable "$candidate" && return
        [ "$candidate" != "${PYTHON:-}" ] || say "PYTHON=$PYTHON is no usable Python 3.12; looking on"
    done < <(candidates)
    if command -v uv >/dev/null; then
        usable "$(uv python find '>=3.12' 2>/dev/null)" && return
        say "uv fetches a Python 3.12"
        uv python install --quiet 3.12 >&2 </dev/null || true
        usable "$(UV_PYTHON_PREFERENCE=only-managed uv python find '>=3.12' 2>/dev/null)" && return
    fi
    say "found no Python of version 3.12 or newer that runs and can make virtual environments."
    say "looked at: \$PYTHON, python3.13, python3.12 and python3 on PATH, the folders of pyenv,"
    say "conda, mise and asdf, and uv. Install one (on Debian also python3-venv), or point PYTHON at it."
    return 1
}

# What .venv was made from: its interpreter, the folder (its scripts hold absolute paths) and the
# two files. Fails where the interpreter is gone.
fingerprint() {
    "$venv/bin/python" -I -c '
import hashlib, pathlib, sys
said = [sys.version, sys.prefix, *(pathlib.Path(p).read_bytes() for p in sys.argv[1:])]
print(hashlib.sha256(repr(said).encode()).hexdigest())
' "$root/pyproject.toml" "$lock" 2>/dev/null </dev/null
}

version_of() { "$1" -I -c 'import sys; print(sys.version)' 2>/dev/null </dev/null; }

is_whole() {
    [ -s "$venv/stamp" ] && [ "$(cat "$venv/stamp")" = "$(fingerprint)" ] || return 1
    # A PYTHON that is asked for by name is an order, not a hint.
    [ -z "${PYTHON:-}" ] || [ -z "$(usable "$PYTHON")" ] ||
        [ "$(version_of "$PYTHON")" = "$(version_of "$venv/bin/python")" ]
}

pip_in() {
    local folder=$1
    shift
    "$folder/bin/python" -m pip -qq --disable-pip-version-check --no-input "$@"
}

# The stamp goes first and comes last: whatever interrupts this leaves a .venv that is rebuilt.
make_venv() {
    local python
    python=$(find_python)
    rm -f "$venv/stamp"
    rm -rf "$venv"
    phase "virtual environment from $python" "$python" -m venv "$venv"
    # The lock is whole: nothing that it does not name is wanted.
    phase "pinned packages" pip_in "$venv" install --no-deps -r "$lock"
    phase "magistral-jax, editable" pip_in "$venv" install --no-deps -e "$root"
    fingerprint >"$venv/stamp.new"
    mv "$venv/stamp.new" "$venv/stamp"
}

# Two starts at once: the second waits for the first, then finds its work done.
make_venv_once() {
    mkdir -p "$root/.cache"
    (
        if command -v flock >/dev/null && ! flock -n 9; then
            say "another start is making .venv; waiting for it"
            flock -w "$LOCK_WAIT_S" 9 || {
                say "waited $LOCK_WAIT_S s for the start that holds $root/.cache/env.lock"
                exit 1
            }
        fi
        is_whole || make_venv
    ) 9>"$root/.cache/env.lock"
}

# Plain name==version lines: where packages come from is the business of the machine's pip.
write_lock() {
    local python
    python=$(find_python)
    # Not local: the trap runs when this function is over.
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    phase "virtual environment from $python" "$python" -m venv "$scratch/venv"
    phase "newest packages" pip_in "$scratch/venv" install -e "$root[test]"
    # For its tests, and without what it asks for: its tokenizers bring TensorFlow.
    phase "JetStream, alone" pip_in "$scratch/venv" install --no-deps google-jetstream==0.2.2 grpcio
    {
        echo "# Exact versions for launch/env.sh, for Python 3.12 and 3.13."
        echo "# Made anew by: PYTHON=python3.12 launch/env.sh --lock"
        pip_in "$scratch/venv" freeze --exclude-editable --exclude pip --exclude setuptools
    } >"$lock.new"
    mv "$lock.new" "$lock"
    say "wrote $lock: $(grep -c == "$lock") packages"
}

case "${1:-}" in
    "") is_whole || make_venv_once ;;
    --lock) write_lock ;;
    *) say "unknown argument '$1'; only --lock is known"; exit 2 ;;
esac
