#!/usr/bin/env bash
# Prefer a better model's texts to the untrained student's own: both are drawn once, no model stays.
# Arguments go to the last training, for instance: bash scripts/soda.sh seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
opd() { .venv/bin/opd "$@"; }
new() { [ -e "$1" ] && return; shift; opd "$@"; } # a file that is there is kept
stored=runs/stored

opd train quickstart # the better model
new "$stored/better.jsonl" sample quickstart model.path=runs/quickstart/model --problems 2400 \
  --to "$stored/better.jsonl"
new "$stored/snapshot.jsonl" sample quickstart --problems 2400 --to "$stored/snapshot.jsonl"
opd train seqkd steps=25 output=runs/soda_warm # the warm-up
opd train soda "$@"
