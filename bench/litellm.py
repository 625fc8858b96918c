"""LiteLLM's proxy, which `bench.router` measures beside the router (its flag `--peer`).

It leads one model name to two models by the same weights as the router, has one worker, no database, and no log of each
request. It is installed into an environment of its own, of the versions that `bench/litellm.txt` pins.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.control_plane import process
from e2e.cluster import paths
from lorikeet_operator.serving.router import Route

LOCK = Path(__file__).with_name("litellm.txt")
VERSION = next(line.split()[0] for line in LOCK.read_text().splitlines() if line.startswith("litellm=="))


def install() -> Path:
    """Install it if it is not there yet, which takes a minute; return its program."""
    name = f"litellm-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    found = paths.cache_dir() / name
    with paths.lock(paths.cache_dir() / "litellm.lock"):
        if not found.exists():
            print("installing LiteLLM into an environment of its own (once)", file=sys.stderr)
            uv = str(Path(sys.executable).with_name("uv"))
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=found.parent) as temporary:
                made = Path(temporary) / name
                subprocess.run([uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, made], check=True)
                command = [uv, "pip", "install", "--quiet", "--require-hashes", "--requirements", str(LOCK)]
                subprocess.run(command, env={**os.environ, "VIRTUAL_ENV": str(made)}, check=True)
                made.rename(found)
    return found / "bin" / "litellm"


def configuration(route: Route, url: str) -> dict[str, Any]:
    """Return the proxy's configuration: one model name, led to each variant by its weight."""
    models = [
        {
            "model_name": route.model,
            "litellm_params": {
                "model": f"openai/{variant.served}",
                "api_base": url,
                "api_key": "none",
                "weight": variant.weight,
            },
        }
        for variant in route.variants
    ]
    return {
        "model_list": models,
        "router_settings": {"routing_strategy": "simple-shuffle", "num_retries": 0},
        # It asks nobody who they are, as the router does.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }


@contextmanager
def proxy(port: int, route: Route, url: str, folder: Path) -> Iterator[int]:
    """Run it before an upstream; yield its process id."""
    file = folder / "litellm.json"
    file.write_text(json.dumps(configuration(route, url)))
    command = [str(install()), "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    with process("litellm", folder, command, **offline) as running:
        yield running.pid
