"""What a run tells of itself, and that it never waits for who listens."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.contract import Artifacts, RunRecord
from lorikeet_api.progress import CA_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, ProgressReport
from lorikeet_api.signs import Sign
from lorikeet_trainer import progress
from lorikeet_trainer.progress import Endpoint, Reporter
from tests.dropping import dropping

PUBLISHED = RunRecord(
    reason="Published",
    message="m",
    artifacts=Artifacts(uri="s3://a/b", run_id="r", revision="abcdef01", sha256="ab" * 32, size_bytes=3),
)


@pytest.fixture(autouse=True)
def _quiet_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let posts under way end within the test: the next one is not to hear of them."""
    monkeypatch.setattr(progress, "TIMEOUT", 0.5)
    before = threading.enumerate()
    yield
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(0.6)


@dataclass
class Server:
    """An endpoint that keeps what it gets, and answers with `answers` first."""

    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def until(self, holds: Callable[[list[dict[str, Any]]], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not holds(self.got):
            assert time.monotonic() < deadline, self.got
            time.sleep(0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    monkeypatch.setattr(progress, "_PAUSE", 0.01)
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = made.answers.pop(0) if made.answers else 200
            if status == 200:
                made.tokens.append(self.headers.get("Authorization", ""))
                made.got.append(json.loads(body)["trainerStatus"])
            ProgressReport.model_validate_json(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{http.server_port}/"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield made
    http.shutdown()
    http.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    with dropping() as url:
        yield url


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Answer each connection with these bytes, whatever it asks, and hang up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_without_an_endpoint_nothing_is_told() -> None:
    assert Endpoint.of({}) is None
    assert Endpoint.of({URL_VARIABLE: ""}) is None
    reporter = Reporter(None)
    reporter.training(1, 2, 3.0, {})
    reporter.end(PUBLISHED, 10)


def test_the_token_is_read_anew_each_time(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    environment = {URL_VARIABLE: server.url, TOKEN_VARIABLE: str(file), CA_VARIABLE: "/nowhere/ca.crt"}
    endpoint = Endpoint.of(environment)
    assert endpoint is not None
    for token in ("one", "two"):
        file.write_text(token)
        endpoint.post({})
    assert server.tokens == ["Bearer one", "Bearer two"]


def test_signs_are_told_as_the_status_has_them(server: Server) -> None:
    sign = Sign(name="LossSpike", step=30, message="m")
    reporter = Reporter(Endpoint(server.url, None, None))
    reporter.signs([sign])
    server.until(lambda got: any(post.get("signs") == [sign.to_wire()] for post in got))
    reporter.close()


def test_training_is_told_by_transformers_names(server: Server) -> None:
    reporter = Reporter(Endpoint.of({URL_VARIABLE: server.url}))
    reporter.training(10, 40, 29.6, {"loss": 1.5, "eval_loss": None})
    server.until(bool)
    (told,) = server.got
    assert told["progressPercentage"] == 25
    assert told["estimatedRemainingSeconds"] == 30
    assert {each["name"]: each["value"] for each in told["metrics"]} == {
        "current_step": "10",
        "total_steps": "40",
        "loss": "1.5",
    }


def test_the_newest_is_told_every_few_seconds(server: Server) -> None:
    reporter = Reporter(Endpoint.of({URL_VARIABLE: server.url}))
    for step in range(1, 101):
        reporter.training(step, 100, None, {"loss": 1.0})
    reporter.close(10)
    assert 1 <= len(server.got) <= 3
    assert {"name": "current_step", "value": "100"} in server.got[-1]["metrics"]
    assert server.got[-1]["progressPercentage"] == 99, "100 is for what is published"


def test_the_end_is_told_until_it_has_arrived(server: Server) -> None:
    server.answers = [503, 500, 503]
    Reporter(Endpoint.of({URL_VARIABLE: server.url})).end(PUBLISHED, 10)
    assert server.got[-1]["record"] == PUBLISHED.to_wire()
    assert server.got[-1]["progressPercentage"] == 100


def test_a_refused_end_is_not_told_again(server: Server) -> None:
    server.answers = [409]
    Reporter(Endpoint.of({URL_VARIABLE: server.url})).end(PUBLISHED, 10)
    assert not server.got


def test_what_did_not_arrive_is_told_with_the_next(server: Server) -> None:
    server.answers = [503]
    reporter = Reporter(Endpoint.of({URL_VARIABLE: server.url}))
    reporter.stage("train")
    server.until(lambda _: not server.answers)
    reporter.training(1, 2, None, {})
    server.until(bool)
    assert server.got[-1]["progressPercentage"] == 50


def test_a_lone_post_that_failed_is_made_again(server: Server) -> None:
    server.answers = [503]
    Reporter(Endpoint.of({URL_VARIABLE: server.url})).stage("train")
    server.until(bool)
    assert server.got[-1]["stage"] == "train"


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no HTTP", "nothing", "half of an answer", "half of a refusal"],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_endpoint_ends_neither_run_nor_thread(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PAUSE", 0.01)
    with answering(answer) as url:
        Reporter(Endpoint.of({URL_VARIABLE: url})).end(PUBLISHED, 0.2)


def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: released.wait(10))
    began = time.monotonic()
    Reporter(Endpoint.of({URL_VARIABLE: "http://lorikeet-progress.lorikeet-system.svc/"})).end(PUBLISHED, 0.3)
    assert time.monotonic() - began < 2
    released.set()


def test_a_failed_run_is_not_at_its_100_percent(server: Server) -> None:
    Reporter(Endpoint.of({URL_VARIABLE: server.url})).end(RunRecord(reason="DataInvalid", message="m"), 10)
    assert server.got[-1]["record"]["reason"] == "DataInvalid"
    assert "progressPercentage" not in server.got[-1]


def test_a_host_that_drops_packets_holds_nobody_up(silent: str) -> None:
    reporter = Reporter(Endpoint.of({URL_VARIABLE: silent}))
    began = time.monotonic()
    for step in range(1000):
        reporter.training(step, 1000, None, {"loss": 1.0})
    assert time.monotonic() - began < 0.5
    reporter.close(0.1)
    began = time.monotonic()
    reporter.end(PUBLISHED, 1.0)
    assert time.monotonic() - began < 2


def test_what_is_wrong_is_told_once(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lorikeet_run.log.event", lambda name, **fields: said.append(name))
    monkeypatch.setattr(progress, "TIMEOUT", 0.05)
    monkeypatch.setattr(progress, "_PAUSE", 0.01)
    Reporter(Endpoint.of({URL_VARIABLE: silent})).end(PUBLISHED, 0.5)
    assert said == ["progress"]
