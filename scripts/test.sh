#!/usr/bin/env bash
# Everything the project promises, checked: makes .venv, installs, runs all tests. Ends with pytest's summary.
#   bash scripts/test.sh            the tests CI runs
#   bash scripts/test.sh --full     also notebook cells flagged slow, and tests marked full
#   bash scripts/test.sh -m "fault and not full"    those that break something on purpose: kills, full disks, damage
#   bash scripts/test.sh --full -m F9      those of one fault, by its number in nbs/studies/990_what_breaks.ipynb
#   bash scripts/test.sh -k name    further words go to pytest; `-n 0` is one process instead of two, for --pdb
. "$(dirname "$0")/env.sh"
ready "[dev]"
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "installing chromium for the browser tests"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 \
    || echo "chromium could not be installed; the browser tests will say so" >&2
fi
if [ "${1:-}" = --full ]; then
  shift
  export VGNB_TEST_FULL=1
  set -- -m "" "$@"
else
  set -- -m "not full and not gpu" "$@"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 MPLBACKEND=agg PYTHONUNBUFFERED=1
exec python -m pytest -q -rfE --durations=12 -n 2 "$@"
