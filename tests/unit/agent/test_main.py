"""`lorikeet-agent TASK` as pods call it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorikeet_agent import main
from lorikeet_api.base import Model
from lorikeet_api.contract import EXIT_BAD_REQUEST, EXIT_DONE, EXIT_INTERNAL, RunRecord, StorageAccess
from lorikeet_api.serving import ResolveContract, ResolveRecord, Unresolved
from lorikeet_api.training import ModelSource
from tests.dropping import dropping
from tests.s3 import S3Server, bucket, free_port, s3, s3_server
from tests.unit.agent.serving.pod import contract

__all__ = ["bucket", "s3", "s3_server"]


def call(tmp_path: Path, task: str, told: Model | str) -> tuple[int, dict[str, Any]]:
    """Call a task in this process; return its exit code and record."""
    file, record = tmp_path / "contract.json", tmp_path / "termination"
    file.write_text(told if isinstance(told, str) else json.dumps(told.to_wire()))
    code = main.main([task, "--contract", str(file), "--termination-log", str(record)])
    return code, json.loads(record.read_text())


@pytest.mark.usefixtures("s3")
def test_resolve_says_what_it_found(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    asked = Unresolved(name="sql", uri=f"s3://{bucket}/x")
    code, record = call(tmp_path, "resolve", ResolveContract(adapters=[asked], storage=s3_server.access))
    assert code == EXIT_DONE
    assert ResolveRecord.model_validate(record).adapters[0].reason == "ManifestMissing"


@pytest.mark.usefixtures("s3")
def test_resolve_ends_for_good_without_a_model(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    asked = ResolveContract(model=ModelSource(uri=f"s3://{bucket}/x"), storage=s3_server.access)
    code, record = call(tmp_path, "resolve", asked)
    told = ResolveRecord.model_validate(record)
    assert (code, told.reason, told.retryable) == (EXIT_BAD_REQUEST, "ModelNotFound", False)


@pytest.mark.usefixtures("s3")
def test_resolve_is_tried_again_where_the_store_is_away(tmp_path: Path) -> None:
    away = StorageAccess(endpoint=f"http://127.0.0.1:{free_port()}")
    asked = ResolveContract(adapters=[Unresolved(name="sql", uri="s3://bucket/x")], storage=away)
    code, record = call(tmp_path, "resolve", asked)
    told = ResolveRecord.model_validate(record)
    assert (code, told.reason, told.retryable) == (EXIT_INTERNAL, "StorageUnreachable", True)


@pytest.mark.parametrize("task", ["resolve", "fetch-model"])
@pytest.mark.parametrize("content", ["{", "[]", '{"unknown": 1}'])
def test_a_contract_that_cannot_be_read_is_said(tmp_path: Path, task: str, content: str) -> None:
    code, record = call(tmp_path, task, content)
    assert (code, record["reason"]) == (EXIT_BAD_REQUEST, "InvalidContract")
    assert "same release" in record["message"]


@pytest.mark.usefixtures("s3")
def test_fetch_model_says_why_it_failed(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    # In a process of its own, whose folders are those of a pod: it fails before it writes any.
    told = contract(s3_server.access, model=ModelSource(uri=f"s3://{bucket}/no"), cached=True)
    code, record = call(tmp_path, "fetch-model", told)
    assert (code, RunRecord.model_validate(record).reason) in (
        (EXIT_BAD_REQUEST, "ModelNotFound"),
        (EXIT_INTERNAL, "InternalError"),
    )


def test_serve_without_a_contract_ends(tmp_path: Path) -> None:
    assert main.main(["serve", "--contract", str(tmp_path / "none.json")]) == EXIT_BAD_REQUEST


def test_an_unknown_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["bake"])
    assert "preflight" in capsys.readouterr().err


def test_what_runs_for_ever_loads_nothing_heavy() -> None:
    code = (
        "import sys, lorikeet_agent.main, lorikeet_agent.serving.main\n"
        "heavy = {'transformers', 'pyarrow', 'huggingface_hub', 'torch', 'kubernetes'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "[]"


SERVE = """
import sys
from dataclasses import replace
from pathlib import Path
from lorikeet_agent.serving.contracts import read
from lorikeet_agent.serving.main import run
from lorikeet_agent.serving.settings import Settings
from lorikeet_api.serving import EngineContract
from lorikeet_run import log

folder = Path(sys.argv[1])
log.set_up()
settings = Settings.of(read(folder / "engine.json", EngineContract))
settings = replace(settings, wanted=folder / "adapters.json", adapters=folder / "adapters", port=int(sys.argv[2]))
sys.exit(run(settings))
"""


def test_serve_ends_at_once_though_a_store_hangs(tmp_path: Path) -> None:
    with dropping() as url:
        told = contract(StorageAccess(endpoint=url.rstrip("/")), free_port())
        (tmp_path / "engine.json").write_text(json.dumps(told.to_wire()))
        hangs = {"served": "sql-00000000", "uri": "s3://bucket/run", "sha256": "0" * 64}
        (tmp_path / "adapters.json").write_text(json.dumps({"adapters": [hangs]}))
        port = free_port()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        agent = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(tmp_path), str(port)],
            env={**os.environ, **keys},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            await_state(port, "sql-00000000")
            start = time.monotonic()
            agent.send_signal(signal.SIGTERM)
            out, _ = agent.communicate(timeout=30)
        finally:
            agent.kill()
            agent.wait()
    assert (agent.returncode, time.monotonic() - start < 3) == (EXIT_DONE, True)
    assert "event=end message=SIGTERM" in out


def await_state(port: int, served: str) -> None:
    """Wait until the agent says something of an adapter."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if served in httpx.get(f"http://127.0.0.1:{port}/state", trust_env=False).text:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the agent does not answer")
