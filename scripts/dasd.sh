#!/usr/bin/env bash
# Distil texts in three stages: cold samples, warm samples, and ends to the student's own beginnings.
# Arguments go to every training, for instance: bash scripts/dasd.sh seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
opd() { .venv/bin/opd "$@"; }
new() { [ -e "$1" ] && return; shift; opd "$@"; } # a file that is there is kept
stored=runs/stored better=model.path=runs/quickstart/model

opd train quickstart # the better model
for stage in cold:0.6 warm:1.0; do
  name=${stage%:*} heat=sampling.temperature=${stage#*:}
  new "$stored/$name.jsonl" sample grpo "$better" "$heat" source.rollouts_per_problem=4 \
    --problems 2400 --to "$stored/$name.jsonl"
  opd score dasd "$heat" --rollouts "$stored/$name.jsonl" --to "$stored/$name" # by the student
done
opd train dasd source.of.path="$stored/cold.jsonl" source.student="$stored/cold" \
  output=runs/dasd_cold "$@"
opd train dasd model.path=runs/dasd_cold/model output=runs/dasd_warm "$@"

new "$stored/student.jsonl" sample grpo model.path=runs/dasd_warm/model --problems 2400 \
  --to "$stored/student.jsonl"
new "$stored/handed.jsonl" sample quickstart "$better" --problems 2400 --to "$stored/handed.jsonl" \
  "source={name: HandOff, of: {name: Stored, path: $stored/student.jsonl, only: failure}}"
opd train dasd model.path=runs/dasd_warm/model output=runs/dasd steps=25 "$@" \
  "source={name: Stored, path: $stored/handed.jsonl, only: success}"
