#!/usr/bin/env bash
# Writes the hash-pinned locks. uv.lock would write index addresses into the repository; these files hold none.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  local output=$1
  shift
  uv pip compile --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet "$@" -o "$output"
}
lock() {
  local name=$1
  shift
  compile "requirements/$name.txt" pyproject.toml --extra "$name" "$@"
}
lock operator "$@"
lock agent "$@"
lock trainer "$@"
lock router "$@"
# On top of the trainer's torch and its libraries, which the two images share as one layer.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==[^ ;]+' requirements/trainer.txt | sort -u > "$constraints"
lock engine-cpu --overrides requirements/engine-cpu-overrides.in --constraints "$constraints" "$@"
lock dev --overrides requirements/dev-overrides.in "$@"
# What the router is measured beside.
compile bench/litellm.txt bench/litellm.in "$@"
