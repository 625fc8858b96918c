"""Inference engines, one file each: the container that runs one, and how adapters are loaded into it while it runs.

The operator builds pods by the first half, the agent beside the engine uses the second. To add an engine, write its
file, add it to ENGINES, and its modes to `e2e/scenarios/test_engines.py`, which has what it must keep.
"""

from typing import Final

from lorikeet_engines.base import Answer, Engine, EngineError, Http, Launch
from lorikeet_engines.vllm import Vllm

__all__ = ["ENGINES", "Answer", "Engine", "EngineError", "Http", "Launch"]

ENGINES: Final[dict[str, Engine]] = {engine.name: engine for engine in (Vllm(),)}
"""The engines by their key in `spec.engine`."""
