"""Claims and the hub: a folder, and a local server that speaks the hub's protocol."""

import json
import os
import threading
from collections.abc import Iterator
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.contract import StorageAccess
from lorikeet_api.training import DataSource, ModelSource
from lorikeet_storage import StorageError, fetch_data, fetch_model, survey_data

ACCESS = StorageAccess()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TAGGED = "89abcdef0123456789abcdef0123456789abcdef"
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"two",
}
EXTRA = {"consolidated.safetensors": b"the same again", "pytorch_model.bin": b"pickle", "original/params.json": b"{}"}


@pytest.fixture
def claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lorikeet_storage.uri.PVC_DIR", str(tmp_path / "pvc"))
    (tmp_path / "pvc" / "claim").mkdir(parents=True)
    return tmp_path / "pvc" / "claim"


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def model_error(uri: str, into: Path) -> StorageError:
    with pytest.raises(StorageError) as caught:
        fetch_model(ModelSource(uri=uri), into, ACCESS)
    return caught.value


# --- claims


def test_a_model_in_a_claim_is_linked_not_copied(claim: Path, tmp_path: Path) -> None:
    write(claim / "tiny", {**MODEL, **EXTRA})
    fetched = fetch_model(ModelSource(uri="pvc://claim/tiny"), tmp_path / "in", ACCESS)
    assert {path.name: path.read_bytes() for path in fetched.path.iterdir()} == MODEL
    assert all(path.is_symlink() for path in fetched.files)
    assert {f.path: (f.sha256, f.size) for f in fetched.digest.files} == {
        name: (sha256(data).hexdigest(), len(data)) for name, data in MODEL.items()
    }
    fetch_model(ModelSource(uri="pvc://claim/tiny"), tmp_path / "in", ACCESS)  # again, as a restart does


def test_data_in_a_claim(claim: Path, tmp_path: Path) -> None:
    write(claim, {"d/b.csv": b"2", "d/a.csv": b"1"})
    whole = fetch_data(DataSource(uri="pvc://claim/d"), tmp_path / "in", ACCESS)
    one = fetch_data(DataSource(uri="pvc://claim/d/b.csv"), tmp_path / "one", ACCESS)
    assert [path.read_bytes() for path in whole.files] == [b"1", b"2"]
    assert [path.read_bytes() for path in one.files] == [b"2"]


def test_claim_or_path_that_is_missing(claim: Path, tmp_path: Path) -> None:
    error = model_error("pvc://other/tiny", tmp_path / "in")
    assert error.reason == "ModelNotFound"
    assert "claim other is not mounted" in error.message
    error = model_error("pvc://claim/tiny", tmp_path / "in")
    assert error.reason == "ModelNotFound"
    assert "claim claim has no path tiny" in error.message


def test_a_link_out_of_a_claim_is_refused(claim: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text("token")
    (claim / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(StorageError, match="a link out of the claim"):
        fetch_data(DataSource(uri="pvc://claim/train.jsonl"), tmp_path / "in", ACCESS)


def test_linked_folders_are_read_where_they_lead(claim: Path, tmp_path: Path) -> None:
    write(claim, {"all/2025/a.csv": b"1", "d/b.csv": b"2"})
    (claim / "d" / "2025").symlink_to(claim / "all" / "2025")
    (claim / "d" / "again").symlink_to(claim / "all" / "2025")
    fetched = fetch_data(DataSource(uri="pvc://claim/d"), tmp_path / "in", ACCESS)
    assert [file.path for file in fetched.digest.files] == ["2025/a.csv", "again/a.csv", "b.csv"]
    (claim / "d" / "2025" / "round").symlink_to(claim / "d")
    with pytest.raises(StorageError, match=r"round in pvc://claim/d is a link to a folder around it"):
        fetch_data(DataSource(uri="pvc://claim/d"), tmp_path / "in", ACCESS)


def test_a_linked_folder_out_of_a_claim_is_refused(claim: Path, tmp_path: Path) -> None:
    write(tmp_path, {"secrets/a.csv": b"1"})
    write(claim, {"d/b.csv": b"2"})
    (claim / "d" / "more").symlink_to(tmp_path / "secrets")
    with pytest.raises(StorageError, match=r"more in pvc://claim/d is a link out of the claim") as caught:
        survey_data(DataSource(uri="pvc://claim/d"), ACCESS)
    assert caught.value.reason == "StorageRefused"


# --- what makes a model


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only safetensors are loaded"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "this is an adapter"),
        ({"model.safetensors": b"x"}, "found model.safetensors"),
        ({k: v for k, v in MODEL.items() if k != "model-2.safetensors"}, "names model-2.safetensors"),
        ({**MODEL, "model.safetensors.index.json": b"[]"}, "cannot be read"),
    ],
)
def test_a_folder_that_is_no_model(claim: Path, tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    write(claim / "tiny", files)
    error = model_error("pvc://claim/tiny", tmp_path / "in")
    assert error.reason == "ModelInvalid"
    assert words in error.message


# --- the hub


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub asks for: a repository's listing, and its files by commit."""

    files: dict[str, bytes] = {}
    tagged: dict[str, bytes] = {}
    """The files of the tag v1, another commit than that of the main branch."""
    token: str | None = None
    seen: list[str] = []

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        self.seen.append(self.path)
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(401, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        path = self.path.partition("?")[0]
        commit, files = (TAGGED, self.tagged) if TAGGED in path or path.endswith("/v1") else (COMMIT, self.files)
        _, _, resolved = path.partition(f"/resolve/{commit}/")
        if "/api/" in path:
            known = path.removeprefix("/api/models/org/name").removeprefix("/api/datasets/org/name")
            if known not in ("", "/revision/main", "/revision/v1", f"/revision/{commit}"):
                code = "RevisionNotFound" if known.startswith("/revision/") else "RepoNotFound"
                return self._send(404, b"{}", {"X-Error-Code": code}, body)
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            listing: dict[str, Any] = {"id": "org/name", "sha": commit, "siblings": siblings}
            return self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        if resolved in files:
            data = files[resolved]
            etag = sha1(data).hexdigest()
            return self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)
        return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[_Hub]]:
    handler = type("Hub", (_Hub,), {"files": {**MODEL, **EXTRA}, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield handler
        server.shutdown()


def test_a_model_of_the_hub_is_pinned_to_its_commit(hub: type[_Hub], tmp_path: Path) -> None:
    fetched = fetch_model(ModelSource(uri="hf://org/name"), tmp_path / "in", ACCESS)
    assert {path.name: path.read_bytes() for path in fetched.path.iterdir()} == MODEL
    assert fetched.digest.revision == COMMIT
    assert {f.path: f.sha256 for f in fetched.digest.files} == {n: sha256(d).hexdigest() for n, d in MODEL.items()}
    assert not any("pytorch_model" in path for path in hub.seen)


def test_a_model_of_a_tag_is_that_of_its_commit(hub: type[_Hub], tmp_path: Path) -> None:
    hub.tagged = {**MODEL, "config.json": b'{"old": 1}'}
    fetched = fetch_model(ModelSource(uri="hf://org/name", revision="v1"), tmp_path / "in", ACCESS)
    assert fetched.digest.revision == TAGGED
    assert (fetched.path / "config.json").read_bytes() == b'{"old": 1}'


def test_data_of_the_hub(hub: type[_Hub], tmp_path: Path) -> None:
    hub.files = {"data/train-0.jsonl": b"0", "data/train-1.jsonl": b"1", "test.jsonl": b"2", "README.md": b""}
    whole = fetch_data(DataSource(uri="hf://org/name/data", revision=COMMIT), tmp_path / "in", ACCESS)
    one = fetch_data(DataSource(uri="hf://org/name/test.jsonl"), tmp_path / "one", ACCESS)
    assert [path.read_bytes() for path in whole.files] == [b"0", b"1"]
    assert [path.read_bytes() for path in one.files] == [b"2"]


def test_data_of_a_tag_is_that_of_its_commit(hub: type[_Hub], tmp_path: Path) -> None:
    hub.files, hub.tagged = {"train.jsonl": b"new"}, {"train.jsonl": b"old"}
    source = DataSource(uri="hf://org/name/train.jsonl", revision="v1")
    pin = survey_data(source, ACCESS).pin
    fetched = fetch_data(source, tmp_path / "in", ACCESS, pin)
    assert (pin, fetched.digest.revision) == (TAGGED, TAGGED)
    assert [path.read_bytes() for path in fetched.files] == [b"old"]


CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: data/train-*}, {split: test, path: test.jsonl}]
---
"""


def test_of_a_whole_data_set_one_split_is_fetched_and_pinned(hub: type[_Hub], tmp_path: Path) -> None:
    hub.files = {"data/train-0.jsonl": b"0", "data/train-1.jsonl": b"1", "test.jsonl": b"2", "README.md": CARD}
    source = DataSource(uri="hf://org/name", subset="en", split="train")
    survey = survey_data(source, ACCESS)
    fetched = fetch_data(source, tmp_path / "in", ACCESS, survey.pin)
    assert [path.read_bytes() for path in fetched.files] == [b"0", b"1"]
    assert (survey.pin, fetched.digest.revision) == (COMMIT, COMMIT)
    assert not any("test.jsonl" in path for path in hub.seen)
    with pytest.raises(StorageError, match=r"hf://org/name, subset en, has several splits, which would mix"):
        fetch_data(DataSource(uri="hf://org/name"), tmp_path / "all", ACCESS)


def test_a_folder_of_several_splits_is_refused(hub: type[_Hub], tmp_path: Path) -> None:
    hub.files = {"d/train.jsonl": b"0", "d/test.jsonl": b"1"}
    with pytest.raises(StorageError, match=r"hf://org/name/d has files of several splits \(test, train\)") as caught:
        fetch_data(DataSource(uri="hf://org/name/d"), tmp_path / "in", ACCESS)
    assert caught.value.reason == "DataInvalid"


def test_shards_are_of_splits_also_where_their_folder_is_named(hub: type[_Hub], tmp_path: Path) -> None:
    hub.files = {"data/gen-00000-of-00001.jsonl": b"0", "data/sft-00000-of-00001.jsonl": b"1"}
    with pytest.raises(StorageError, match=r"hf://org/name/data has files of several splits \(gen, sft\)"):
        fetch_data(DataSource(uri="hf://org/name/data"), tmp_path / "in", ACCESS)
    one = fetch_data(DataSource(uri="hf://org/name/data/gen-00000-of-00001.jsonl"), tmp_path / "one", ACCESS)
    assert [path.read_bytes() for path in one.files] == [b"0"]


def test_a_shard_and_a_file_of_another_split_do_not_mix(hub: type[_Hub], tmp_path: Path) -> None:
    hub.files = {"data/train-00000-of-00001.jsonl": b"0", "data/test.jsonl": b"1"}
    with pytest.raises(StorageError, match=r"several splits \(test, train\)"):
        fetch_data(DataSource(uri="hf://org/name/data"), tmp_path / "in", ACCESS)


def test_gated_until_the_token_is_there(hub: type[_Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    error = model_error("hf://org/name", tmp_path / "in")
    assert error.reason == "StorageRefused"
    assert "accept its terms" in error.message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch_model(ModelSource(uri="hf://org/name"), tmp_path / "in", ACCESS).digest.revision == COMMIT


def test_repository_or_revision_that_is_missing(hub: type[_Hub], tmp_path: Path) -> None:
    error = model_error("hf://org/other", tmp_path / "in")
    assert error.reason == "ModelNotFound"
    with pytest.raises(StorageError, match="no such revision"):
        fetch_model(ModelSource(uri="hf://org/name", revision="v9"), tmp_path / "in", ACCESS)


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = model_error("hf://org/name", tmp_path / "in")
    assert (error.reason, error.retryable) == ("StorageUnreachable", True)


def test_an_offline_pod_is_told_to_use_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = model_error("hf://org/name", tmp_path / "in")
    assert (error.reason, error.retryable) == ("StorageUnreachable", False)
    assert "copy it to S3" in error.message


def test_a_model_is_a_whole_repository(tmp_path: Path) -> None:
    assert model_error("hf://org/name/folder", tmp_path).reason == "InvalidContract"
