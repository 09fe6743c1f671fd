#!/usr/bin/env bash
# Everything that must hold before a change goes in: lint, format, types, import contracts, tests.
# Arguments go to pytest, for instance: bash scripts/test.sh tests/unit -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh full
if nvidia-smi >/dev/null 2>&1; then markers=""; else markers="not gpu"; fi

failed=()
check() {
  local name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

check lint .venv/bin/python -m ruff check
check format .venv/bin/python -m ruff format --check
check types .venv/bin/python -m pyright --pythonpath .venv/bin/python
check imports .venv/bin/lint-imports --no-logo
check tests .venv/bin/python -m pytest -m "$markers" "$@"

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
