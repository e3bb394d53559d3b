#!/usr/bin/env bash
# One command from a fresh clone to pictures and numbers: makes .venv, trains a tokenizer and a generator on two CPU cores, samples and measures.
#   bash scripts/quickstart.sh [--data DIR] [--out DIR] ...     (python scripts/quickstart.py --help lists the options)
. "$(dirname "$0")/env.sh"
ready "[eval]"
exec python scripts/quickstart.py "$@"
