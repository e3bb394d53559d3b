# Sourced by quickstart.sh and test.sh: makes .venv once and installs this checkout into it (`ready EXTRAS`). Nothing outside the checkout is touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ready() {  # ready "" | ready "[dev]": an environment whose stamp fits pyproject.toml and constraints.txt is used as it is
  local python=${PYTHON:-python3} stamp want
  command -v "$python" >/dev/null || { echo "quickstart needs Python 3.10-3.13: install python3 (Debian: apt-get install python3 python3-venv)" >&2; exit 1; }
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { echo "needs Python 3.10-3.13, found $("$python" -V); set PYTHON=python3.12, say" >&2; exit 1; }
  if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv 2>/dev/null || { rm -rf .venv; echo "cannot make a virtual environment: install venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
  fi
  want=$(cat pyproject.toml constraints.txt scripts/env.sh | cksum | cut -d' ' -f1)
  stamp=".venv/.vgnb$1"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] && { [ "$1" = "[dev]" ] || [ "$(cat ".venv/.vgnb[dev]" 2>/dev/null)" != "$want" ]; }; then
    echo "installing vgnb$1 into .venv (once)"
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".$1"
    echo "$want" > "$stamp"
  fi
  . .venv/bin/activate
}
