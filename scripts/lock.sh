#!/usr/bin/env bash
# Writes the hash-pinned locks. uv.lock would write index addresses into the repository; these files hold none.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {
  local name=$1
  shift
  uv pip compile pyproject.toml --extra "$name" --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet "$@" -o "requirements/$name.txt"
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
