#!/usr/bin/env bash
# From verdicts alone: learn to revise, then let the reviser teach every token of the first attempt.
# Arguments go to the last training, for instance: bash scripts/sd_zero.sh seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
opd() { .venv/bin/opd "$@"; }
own=runs/stored/own.jsonl

[ -e "$own" ] || opd sample grpo --problems 2400 --to "$own" # 8 attempts a problem
opd train sdzero_revise
opd train sdzero "$@"
