#!/usr/bin/env bash
# One command from a fresh clone to pictures and numbers: makes .venv, trains a tokenizer and a generator on two CPU
# cores, samples and measures.
#   bash scripts/quickstart.sh [--data DIR] [--out DIR] ...     (python scripts/quickstart.py --help lists the options)
. "$(dirname "$0")/env.sh"
ready "[eval]"
# for networks this small a second thread gains little, and loses tenfold when the machine is busy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python scripts/quickstart.py "$@"
