#!/usr/bin/env bash
# From a fresh clone to a model that has taught itself: set up, train the embedded default, report.
# Arguments go to the training, for instance: bash scripts/quickstart.sh seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh light
.venv/bin/opd train quickstart "$@"
.venv/bin/opd report runs/quickstart
