# Sourced by quickstart.sh and test.sh: makes .venv once and installs this checkout into it (`ready EXTRAS`).
# Nothing outside the checkout is touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# where it is set (containers do that), each of some hundred processes would compile torch anew, for ten seconds
unset PYTHONDONTWRITEBYTECODE

fail() { echo "$1" >&2; exit 1; }

# ready "" | ready "[dev]": an environment whose stamp fits pyproject.toml and constraints.txt is used as it is
ready() {
  local python=${PYTHON:-python3} venv="Debian: apt-get install python3-venv" want
  command -v "$python" >/dev/null \
    || fail "quickstart needs Python 3.10-3.13: install python3 (Debian: apt-get install python3 python3-venv)"
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' \
    || fail "needs Python 3.10-3.13, found $("$python" -V); set PYTHON=python3.12, say"
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv 2>/dev/null \
      || { rm -rf .venv; fail "cannot make a virtual environment: install venv ($venv)"; }
  fi
  want=$(cat pyproject.toml constraints.txt scripts/env.sh | cksum | cut -d' ' -f1)
  # what tests need holds what a quickstart needs
  if ! stamped "$1" "$want" && { [ "$1" = "[dev]" ] || ! stamped "[dev]" "$want"; }; then
    echo "installing vgnb$1 into .venv (once)"
    # on the Python that constraints.txt pins all of it is known: nothing is looked for, most of pip's time
    [ "$1" = "[dev]" ] && install --no-deps -r constraints.txt
    install -c constraints.txt -e ".$1"
    echo "$want" > ".venv/.vgnb$1"
  fi
  . .venv/bin/activate
}

# bytecode is made of what is imported, not of all there is
install() { .venv/bin/python -m pip install -q --disable-pip-version-check --no-compile "$@"; }

stamped() { [ "$(cat ".venv/.vgnb$1" 2>/dev/null)" = "$2" ]; }   # EXTRAS WANT: was it installed from the same files?
