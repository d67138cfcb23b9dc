#!/usr/bin/env bash
# Set up what the tests need, then run them.
#
#   bash run_tests.sh                       all tests
#   bash run_tests.sh tests/test_cli.py -x  any arguments of pytest
#   PYTHON=python3.12 bash run_tests.sh     with this interpreter
#
# Uses the active virtual environment, else makes .venv and reuses it.
set -euo pipefail
cd "$(dirname "$0")"

source ./setup_env.sh
setup_env requirements.txt requirements-dev.txt

exec python -m pytest "$@"
