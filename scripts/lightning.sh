#!/usr/bin/env bash
# Distil without a teacher at hand: sample once, score once, then train on what is on disk.
# Arguments go to the training, for instance: bash scripts/lightning.sh seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
opd() { .venv/bin/opd "$@"; }
stored=runs/stored

opd train quickstart # the teacher
mkdir -p "$stored"
[ -e "$stored/lightning.jsonl" ] ||
  opd sample lightning source=OnPolicy --problems 2400 --to "$stored/lightning.jsonl"
opd score lightning 'teacher.weights={name: External, path: runs/quickstart/model}' \
  --rollouts "$stored/lightning.jsonl" --to "$stored/lightning"
opd train lightning "$@"
