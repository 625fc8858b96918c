"""Measures what becomes of a large file of rows, beside `datasets.map` (`make bench-data`).

    .venv/bin/python -m bench.data [--rows 1000000]

Writes rows with a prompt and a completion, whose lengths differ as those of real data do, and a tokenizer with a chat
template, into a temporary folder, from a seed: every run has the same. Then four processes, one after the other:

- `preflight`: what the agent makes of them before a GPU is asked for (`lorikeet_agent.tokenise`), without torch, and
  stores in a folder in a bucket's place.
- `tokenised`: what the trainer does with that: fetch, read, check, profile, mix, and the examples, packed.
- `lorikeet`: what a run does with them before its model is loaded (`lorikeet_trainer.examples.render`: read, render,
  tokenise, check, profile, mix), and what objective sft makes of that: the examples, packed.
- `datasets_map`: `datasets.load_dataset` of the same file, and one `map`, batched, in one process, which puts the same
  template and tokenizer to each row: no labels, checks, profile or packing.

Prints one JSON object: of the data `rows` and `mib`, and for each of the four

- `seconds` and `rows_per_second`: from the file to the end, without imports and without loading the tokenizer;
  `cpu_seconds`: what all threads have taken, which other work on the machine changes less.
- `render`, `examples`: the seconds of Lorikeet's two parts; `tokens`, `sequences`: what it makes of the rows.
- `peak_mib`: the most memory that the process had resident, its children's with it, pages of mapped files included;
  `libraries_mib`: what was there before the data, imported; `data_mib`: the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from lorikeet_api.contract import RunContract, SourceDigest
    from lorikeet_run.rows import Epoch
    from lorikeet_run.tokens import Tokens

SEED = 6
WORDS = 20_000
VOCABULARY = 8_000
MAX_LENGTH = 1024
SOURCE = "rows.jsonl"
_SYLLABLES = [consonant + vowel + end for consonant in "bdfgklmnprst" for vowel in "aeiou" for end in ("", "n", "r")]


def rows(count: int) -> Iterator[dict[str, str]]:
    """Yield rows of words as frequent as those of a language; half of the completions have more than 45 of them."""
    drawn = random.Random(SEED)
    words = ["".join(drawn.choices(_SYLLABLES, k=drawn.randint(1, 4))) for _ in range(WORDS)]
    # A long text to cut from: to draw each word would take longer than what is measured.
    text = drawn.choices(words, [1 / (place + 3) for place in range(WORDS)], k=1 << 20)

    def some(median: float, most: int) -> str:
        length = min(most, 1 + int(drawn.lognormvariate(0, 0.8) * median))
        begin = drawn.randrange(len(text) - length)
        return " ".join(text[begin : begin + length])

    for _ in range(count):
        yield {"prompt": some(14, 120) + "?", "completion": some(45, 600) + "."}


def write(folder: Path, count: int) -> None:
    """Write rows and a base model's small files."""
    from tests.trainer import tiny

    with (folder / SOURCE).open("w", encoding="utf-8") as file:
        for row in rows(count):
            file.write(json.dumps(row) + "\n")
    corpus = (text for row in rows(20_000) for text in row.values())
    made = tiny.tokenizer(tiny.CHATML, corpus, VOCABULARY)
    made.save_pretrained(folder / "model")
    config = {"model_type": "llama", "vocab_size": len(made), "max_position_embeddings": MAX_LENGTH}
    (folder / "model" / "config.json").write_text(json.dumps(config))


def run_of(folder: Path) -> tuple[RunContract, SourceDigest, SourceDigest]:
    """Return a run whose sources and output lie in a folder, and what its model and its data are."""
    from lorikeet_api.contract import SourceDigest, StorageAccess
    from lorikeet_api.training import Dataset, WeightedDataSource
    from lorikeet_storage.folders import use_folders
    from lorikeet_storage.sources import file_digest
    from tests import runs

    source = WeightedDataSource(uri=f"s3://datasets/{SOURCE}")
    dataset = Dataset(train=[source], max_length=MAX_LENGTH, packing=True)
    contract = runs.contract("s3://out/bench", StorageAccess(), dataset=dataset)
    use_folders({"s3://datasets": folder}, {"s3://out": folder / "out"})
    files = [file_digest(path, path.name) for path in (folder / "model").iterdir()]
    data = SourceDigest(uri=source.uri, files=[file_digest(folder / SOURCE, SOURCE)])
    return contract, SourceDigest(uri=contract.model.uri, files=files), data


def preflight(folder: Path) -> Callable[[], dict[str, Any]]:
    """Return what is measured of the agent, all that it needs imported."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # its image has none
    from lorikeet_agent.tokenise import tokenise
    from lorikeet_storage import survey_data

    contract, model, _ = run_of(folder)
    (source,) = contract.dataset.train

    def measured() -> dict[str, Any]:
        began = time.monotonic()
        pins = [survey_data(source, contract.storage).pin]
        index = tokenise(contract, pins, folder / "model", model.files, folder / "agent")
        stored = sum(file.size for portion in index.portions for file in portion.files)
        return {"rows": sum(index.rows), "stored_mib": stored >> 20, "seconds": time.monotonic() - began}

    return measured


def tokenised(folder: Path) -> Callable[[], dict[str, Any]]:
    """Return what is measured of the trainer where preflight has made the tokens."""
    return lorikeet(folder, is_tokenised=True)


def lorikeet(folder: Path, *, is_tokenised: bool = False) -> Callable[[], dict[str, Any]]:
    """Return what is measured of the trainer, all that it needs imported."""
    import torch
    from datasets import disable_progress_bars  # type: ignore[import-untyped]

    from lorikeet_run.hyperparameters import Hyperparameters
    from lorikeet_run.tokenised import address, fetch
    from lorikeet_run.tokenizer import load_tokenizer
    from lorikeet_storage import TokenSets
    from lorikeet_trainer.device import Compute
    from lorikeet_trainer.examples import render
    from lorikeet_trainer.objectives.sft import examples
    from lorikeet_trainer.session import Session
    from lorikeet_trainer.state import Layout, Prepared

    disable_progress_bars()
    contract, model, data = run_of(folder)
    layout = Layout(folder)
    if not layout.source(0).exists():
        layout.source(0).mkdir(parents=True)
        os.link(folder / SOURCE, layout.source(0) / SOURCE)
    with (folder / SOURCE).open("rb") as file:
        count = sum(1 for _ in file)
    counted = [data.model_copy(update={"rows": count})]
    prepared = Prepared(model=model, data=counted, is_tokenised=is_tokenised)
    compute = Compute(torch.device("cpu"), torch.float32, rank=0, ranks=1)
    session = Session(contract, layout, prepared, Hyperparameters.of(contract), compute)
    tokenizer = load_tokenizer(layout.model)

    def measured() -> dict[str, Any]:
        began = time.monotonic()
        if is_tokenised:
            fetch(TokenSets(contract), address(contract, counted, model.files), layout.tokens)
        made = render(session, tokenizer)
        rendered = time.monotonic()
        packed = examples(cast("Epoch[Tokens]", made.train), MAX_LENGTH, layout.packed(0))
        ended = time.monotonic()
        return {
            "rows": len(made.train),
            "tokens": sum(len(row.parts[0].input_ids) for row in made.train),
            "sequences": len(packed),
            "seconds": ended - began,
            "render": rendered - began,
            "examples": ended - rendered,
        }

    return measured


def datasets_map(folder: Path) -> Callable[[], dict[str, Any]]:
    """Return what is measured of the peer, all that it needs imported."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")

    def tokenised(batch: dict[str, list[str]]) -> dict[str, Any]:
        conversations = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True)
        ]
        return {"input_ids": tokenizer.apply_chat_template(conversations, return_dict=True)["input_ids"]}

    def measured() -> dict[str, Any]:
        began = time.monotonic()
        loaded = load_dataset("json", data_files=str(folder / SOURCE), split="train", cache_dir=str(folder / "cache"))
        made = loaded.map(tokenised, batched=True, remove_columns=loaded.column_names)
        return {"rows": len(made), "seconds": time.monotonic() - began}

    return measured


SIDES: dict[str, Callable[[Path], Callable[[], dict[str, Any]]]] = {
    "preflight": preflight,
    "tokenised": tokenised,
    "lorikeet": lorikeet,
    "datasets_map": datasets_map,
}


class Memory(threading.Thread):
    """Looks how much memory this process and its children have resident, ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = _resident()
        self._over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(0.1):
            self.most = max(self.most, _resident())

    def end(self) -> dict[str, int]:
        """Return the figures, in MiB."""
        self._over.set()
        # What the kernel has noted of this process itself misses no moment.
        lines = Path("/proc/self/status").read_text().splitlines()
        noted = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
        peak = max(self.most, noted)
        found = {"peak_mib": peak, "libraries_mib": self.before, "data_mib": peak - self.before}
        return {name: size >> 20 for name, size in found.items()}


def _resident() -> int:
    ours = psutil.Process()
    held = 0
    for one in (ours, *ours.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            held += one.memory_info().rss
    return held


def side(name: str, folder: Path) -> dict[str, Any]:
    """Measure one of them in this process."""
    measured = SIDES[name](folder)
    memory = Memory()
    memory.start()
    began = time.process_time()
    found = measured()
    found["cpu_seconds"] = time.process_time() - began
    rounded = {name: round(value, 1) if isinstance(value, float) else value for name, value in found.items()}
    return {**rounded, "rows_per_second": round(found["rows"] / found["seconds"]), **memory.end()}


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Return all figures."""
    write(folder, count)
    found: dict[str, Any] = {"rows": count, "mib": (folder / SOURCE).stat().st_size >> 20}
    for name in SIDES:
        command = [sys.executable, "-m", "bench.data", "--side", name, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        print(json.dumps(side(given.side, given.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as folder:
        print(json.dumps(measure(Path(folder), given.rows), indent=1))


if __name__ == "__main__":
    main()
