#!/usr/bin/env bash
# What action.yml runs: `edgepress gate` with the options that GATE_… variables hold, its verdict as outputs of the step.
# Annotations and the summary of the job are written by the command itself.
set -euo pipefail

options=()
for name in test metric output budget target max-latency-ratio max-size max-memory confidence inconclusive config history junit; do
  variable=GATE_${name^^}
  variable=${variable//-/_}
  if [ -n "${!variable:-}" ]; then
    options+=("--$name=${!variable}")
  fi
done
models=()
for model in "${GATE_BASELINE:-}" "${GATE_CANDIDATE:-}"; do
  if [ -n "$model" ]; then
    models+=("$model")
  fi
done
if [ -z "${GATE_BASELINE:-}" ] && [ -n "${GATE_CANDIDATE:-}" ]; then
  echo "::error title=edgepress gate::A candidate without a baseline: name both, or both in edgepress.toml."
  exit 2
fi
json=${GATE_JSON:-${RUNNER_TEMP:-${TMPDIR:-/tmp}}/edgepress-gate.json}
rm -f -- "$json"

code=0
edgepress gate "${options[@]}" "--json=$json" -- "${models[@]}" || code=$?

verdict=
if [ -f "$json" ]; then
  verdict=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1], encoding="utf-8"))["verdict"])' "$json")
fi
{
  echo "verdict=$verdict"
  echo "exit-code=$code"
  echo "json=$json"
} >>"${GITHUB_OUTPUT:-/dev/stdout}"
exit "$code"
