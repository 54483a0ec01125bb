#!/usr/bin/env bash
# Every check of this project: style, types, tests. The command is the same here and in CI.
#
#   launch/test.sh                       what takes seconds
#   launch/test.sh --full                also the tests marked `full`, which take minutes
#   launch/test.sh tests/batch -k pack   anything else goes to pytest
#
# All four checks run, whichever fails. The exit code is pytest's; where pytest is content and
# another check is not, it is 1.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/launch/env.sh"
cd "$root"
bin=$root/.venv/bin

# Compiled programs outlive the run, and serve every test that makes the same one.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

select=(-m "not full")
rest=()
for argument in "$@"; do
    case "$argument" in
        --full) select=() ;;
        *) rest+=("$argument") ;;
    esac
done

failed=()
check() {
    local what=$1
    shift
    printf '== %s\n' "$what"
    "$@" || failed+=("$what")
}

check "ruff check" "$bin/ruff" check
check "ruff format" "$bin/ruff" format --check
check "pyright" "$bin/pyright" --pythonpath "$bin/python"

printf '== pytest\n'
code=0
# The odd spelling: bash before 4.4 takes an empty array for an unset variable.
"$bin/python" -m pytest ${select[@]+"${select[@]}"} ${rest[@]+"${rest[@]}"} || code=$?

if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    [ "$code" -ne 0 ] || code=1
fi
printf 'test.sh: %s s in all\n' "$SECONDS"
exit "$code"
