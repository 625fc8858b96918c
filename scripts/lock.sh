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
lock dev --overrides requirements/dev-overrides.in "$@"
