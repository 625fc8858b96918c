"""Reward models before and in a run: what they are is known by their manifest, and that they read what is written."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from lorikeet_api.contract import FileDigest, Manifest, RunContract, SourceDigest, StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import ModelSource
from lorikeet_run.errors import RunError
from lorikeet_run.reward_models import BASE, PUBLISHED, check_reward_models, fetch_reward_models
from lorikeet_storage.errors import StorageError
from lorikeet_storage.folders import FOLDERS_VARIABLE, use_folders
from tests import runs

URI = "s3://adapters/judge/r1"
WEIGHTS = FileDigest(path="model.safetensors", sha256=hashlib.sha256(b"base").hexdigest(), size=4)
OURS = SourceDigest(uri="s3://models/tiny", files=[WEIGHTS])
OTHERS = SourceDigest(uri="s3://models/other", files=[WEIGHTS.model_copy(update={"sha256": "0" * 64})])


def tokenizer(*words: str) -> bytes:
    vocabulary = {word: number for number, word in enumerate(("<unk>", *words))}
    return str(Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).to_str()).encode()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's base model, as far as it matters here; what lies in S3 lies below `tmp_path`."""
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    use_folders({"s3://adapters": tmp_path / "adapters", "s3://models": tmp_path / "models"})
    for name in ("tiny", "other"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_bytes(tokenizer("a", "b"))
        (folder / "model.safetensors").write_bytes(b"base" if name == "tiny" else b"else")
    return tmp_path / "models" / "tiny"


def publish(
    folder: Path,
    words: tuple[str, ...] = ("a", "b"),
    base: SourceDigest = OURS,
    kind: str = "reward",
    method: dict[str, Any] | None = None,
) -> str:
    """Write what a run has published; return the sha256 of its manifest."""
    whole = method is not None
    below = "model" if whole else "adapter"
    files = {
        f"{below}/{name}": content
        for name, content in {
            "config.json" if whole else "adapter_config.json": b"{}",
            "model.safetensors" if whole else "adapter_model.safetensors": b"weights",
            "tokenizer.json": tokenizer(*words),
        }.items()
    }
    objective = Objective.model_validate({"reward": {}} if kind == "reward" else {"sft": {}})
    changes = {"objective": objective, "model": ModelSource(uri=base.uri)}
    draft = runs.draft(runs.contract("s3://adapters/judge", StorageAccess(), **changes)).to_wire()
    if method is not None:
        draft["contract"]["method"] = method
    digests = [
        {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for path, content in files.items()
    ]
    manifest = Manifest.model_validate({**draft, "kind": kind, "baseModel": base.to_wire(), "files": digests})
    for path, content in {**files, "manifest.json": manifest.to_bytes()}.items():
        (folder / "adapters/judge/r1" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "adapters/judge/r1" / path).write_bytes(content)
    return hashlib.sha256(manifest.to_bytes()).hexdigest()


def judged(sha256: str | None = None, pins: list[str] | None = None) -> RunContract:
    """Return a run whose answers the published model judges."""
    source = {"uri": URI, **({"sha256": sha256} if sha256 else {})}
    rlhf = Objective.model_validate({"rlhf": {"rewards": [{"match": {"column": "a"}}, {"model": source}]}})
    return runs.contract("s3://adapters/policy", StorageAccess(), objective=rlhf, pins=pins)


def test_it_is_pinned_by_its_manifest_and_fetched_whole(model: Path, tmp_path: Path) -> None:
    sha256 = publish(tmp_path)
    assert check_reward_models(judged(), model, tmp_path / "looked", 0) == [sha256]
    (digest,) = fetch_reward_models(judged(pins=["m", "d", sha256]), OURS, model, tmp_path / "work", 0)
    assert digest.files[0].path == "manifest.json"
    names = {path.name for path in (tmp_path / "work/0" / PUBLISHED).iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not (tmp_path / "work/0" / BASE).exists(), "the run has that base itself"


def test_another_base_is_fetched_beside_it_if_it_is_what_it_was(model: Path, tmp_path: Path) -> None:
    publish(tmp_path, base=OTHERS)
    with pytest.raises(RunError, match="which has other weights now"):
        fetch_reward_models(judged(), OURS, model, tmp_path / "work", 0)
    right = FileDigest(path="model.safetensors", sha256=hashlib.sha256(b"else").hexdigest(), size=4)
    publish(tmp_path, base=OTHERS.model_copy(update={"files": [right]}))
    fetch_reward_models(judged(), OURS, model, tmp_path / "work", 0)
    assert (tmp_path / "work/0" / BASE / "model.safetensors").read_bytes() == b"else"


def test_a_whole_one_needs_no_base(model: Path, tmp_path: Path) -> None:
    publish(tmp_path, base=OTHERS, method={"full": {}})
    fetch_reward_models(judged(), OURS, model, tmp_path / "work", 0)
    assert (tmp_path / "work/0" / PUBLISHED / "model.safetensors").exists()


@pytest.mark.parametrize("pin", ["in the request", "when it was checked"])
def test_what_is_not_what_was_pinned_is_refused(model: Path, tmp_path: Path, pin: str) -> None:
    publish(tmp_path)
    other = "0" * 64
    contract = judged(other) if pin == "in the request" else judged(pins=["m", "d", other])
    with pytest.raises(StorageError, match="pinned is 0000"):
        fetch_reward_models(contract, OURS, model, tmp_path / "work", 0)


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"kind": "adapter"}, "has published no reward model, its objective was sft"),
        ({"words": ("b", "a")}, r"another tokenizer than the model that is trained \(2 of 3 tokens, 'a' for one\)"),
        ({"words": ("a",)}, r"another tokenizer than the model that is trained \(1 of 3 tokens, 'b' for one\)"),
        (
            {"base": SourceDigest(uri="pvc://claim/base", files=[])},
            "was trained on pvc://claim/base, a volume that this run does not mount: train it on s3://models/tiny",
        ),
    ],
    ids=["an adapter", "other numbers", "fewer tokens", "a volume"],
)
def test_one_that_cannot_judge_is_refused_with_what_to_do(
    model: Path, tmp_path: Path, published: dict[str, Any], words: str
) -> None:
    publish(tmp_path, **published)
    with pytest.raises(RunError, match=words) as looked:
        check_reward_models(judged(), model, tmp_path / "looked", 0)
    with pytest.raises(RunError, match=words):
        fetch_reward_models(judged(), OURS, model, tmp_path / "work", 0)
    assert looked.value.reason == "ModelInvalid"


def test_a_tokenizer_that_knows_more_reads_all_that_is_written(model: Path, tmp_path: Path) -> None:
    publish(tmp_path, words=("a", "b", "more"))
    assert check_reward_models(judged(), model, tmp_path / "looked", 0)


def test_one_that_is_not_there_is_said_with_its_field(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"s3://adapters/judge/r1/manifest.json does not exist.*rlhf\.rewards\[\]\.model"
    ):
        check_reward_models(judged(), model, tmp_path / "looked", 0)
