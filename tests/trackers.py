"""A real MLflow server for tests, and readers of what trackers write to files."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import httpx
from tensorboardX.crc32c import crc32c  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from tests.s3 import free_port

_BLOCK = 32768


class MlflowServer:
    """MLflow's own server over a database in a file; it starts while tests do something else."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{root}/runs.db", "--artifacts-destination", str(root / "files")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._log = (root / "log").open("wb")
        self._process = subprocess.Popen(
            [*command, "--workers", "1"], env={**os.environ, **quiet}, stdout=self._log, stderr=self._log
        )

    def wait(self) -> None:
        """Wait until it answers."""
        transport = httpx.HTTPTransport(retries=0)
        with httpx.Client(transport=transport, trust_env=False) as client:
            while self._process.poll() is None:
                try:
                    if client.get(f"{self.url}/health").is_success:
                        return
                except httpx.TransportError:
                    continue
        raise AssertionError(Path(self._log.name).read_text())

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=30)
        self._log.close()


def read_events(data: bytes) -> list[Event]:
    """Return the events of a TensorBoard file, as TensorFlow frames records: each with its length and two checksums."""
    events = []
    while data:
        header, (length, of_header) = data[:8], struct.unpack("<QI", data[:12])
        body, (of_body,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert (of_header, of_body) == (_masked(header), _masked(body))
        events.append(Event.FromString(body))
        data = data[16 + length :]
    return events


def _masked(data: bytes) -> int:
    found = int(crc32c(data))
    return (((found >> 15) | (found << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_wandb(data: bytes) -> list[Record]:
    """Return the records of a `.wandb` file: LevelDB's log after a header of seven bytes."""
    assert data[:4] == b":W&B"
    records, parts, place = [], b"", 7
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records
