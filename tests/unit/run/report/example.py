"""A report to draw: that of a run on a GPU which went as such runs do."""

import math
import random
from typing import Any

from lorikeet_api.contract import FileDigest, Metrics, SourceDigest, StorageAccess, Template
from lorikeet_api.training import Dataset, ModelSource, Training
from lorikeet_run.report import (
    Answer,
    Chart,
    DataProfile,
    LengthBin,
    RunReport,
    Sample,
    Series,
    SourceProfile,
    Span,
)
from tests import runs

MODEL, TRAIN, HELD_OUT = (
    "hf://HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "s3://datasets/text-to-sql/train.jsonl",
    "s3://datasets/text-to-sql/heldout.jsonl",
)
Point = tuple[int, float | None]


def report(steps: int = 240, **changes: Any) -> RunReport:
    """Return the report of a run of so many steps; any field can be changed."""
    dataset = Dataset.model_validate({"train": [{"uri": TRAIN}], "eval": {"uri": HELD_OUT}, "trainOn": "assistant"})
    training = Training(learning_rate=2e-4, batch_size=16, epochs=3.0, seed=1, scheduler="cosine", warmup_ratio=0.03)
    fields: dict[str, Any] = {
        "contract": runs.contract(
            "s3://adapters/team-a/text-to-sql",
            StorageAccess(endpoint="https://minio.storage:9000"),
            name="text-to-sql",
            model=ModelSource(uri=MODEL),
            dataset=dataset,
            training=training,
            gpus=1,
        ),
        "metrics": Metrics(
            train_loss=0.7312,
            eval_loss=0.512,
            base_eval_loss=2.31,
            perplexity=1.669,
            steps=steps,
            train_examples=7800,
            eval_examples=400,
            dropped_examples=12,
            trained_tokens=412_000,
            trainable_parameters=18_087_936,
            trainable_percent=1.05,
            stop_token_percent=100.0,
            tokens_per_second=12_764.0,
            train_seconds=512.0,
            peak_memory_bytes=21 * 2**30,
            device="NVIDIA L4",
        ),
        "charts": charts(steps),
        "spans": [
            Span(name="Fetching and checking", seconds=41.2),
            Span(name="Loading the model", seconds=12.4),
            Span(name="Optimiser steps", seconds=498.0, is_steps=True),
            Span(name="Checkpoints", seconds=14.0),
            Span(name="Evaluations on the way", seconds=55.0),
        ],
        "samples": [
            Sample(
                prompt="<|im_start|>user\nTable orders(id, customer, total, placed_on).\nHow much did each customer"
                " spend in 2025?<|im_end|>\n<|im_start|>assistant\n",
                expected="SELECT customer, SUM(total) FROM orders WHERE placed_on >= '2025-01-01' GROUP BY customer;",
                before=Answer(text="To answer this, group the rows by customer. Here is how:\n\n1. First", ended=False),
                after=Answer(text="SELECT customer, SUM(total) FROM orders GROUP BY customer;", ended=True),
            ),
            Sample(
                prompt="<|im_start|>user\nHow many customers are there?<|im_end|>\n<|im_start|>assistant\n",
                expected="SELECT COUNT(*) FROM customers;",
                before=Answer(text="I have no access to your database.", ended=True),
                after=Answer(text="SELECT COUNT(*) FROM customers;", ended=True),
            ),
        ],
        "profile": DataProfile(
            sources=[
                SourceProfile(uri=TRAIN, rows=7812, format="chat", use="training"),
                SourceProfile(uri=HELD_OUT, rows=400, format="chat", use="evaluation"),
            ],
            train_examples=7800,
            held_out_examples=400,
            dropped=12,
            trained_tokens=412_000,
            lengths=[
                LengthBin(first=low, last=low + 49, examples=round(1600 * math.exp(-(((low - 250) / 150) ** 2))))
                for low in range(0, 700, 50)
            ],
        ),
        "template": Template(source="base", sha256="cd" * 32),
        "base_model": source(MODEL, 3, revision="31b70e2e869a7173562077fd711b654946d38674"),
        "data": [source(TRAIN, 1), source(HELD_OUT, 1)],
        "libraries": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0"},
    }
    return RunReport(**{**fields, **changes})


def source(uri: str, files: int, **more: Any) -> SourceDigest:
    """Return a source as it was read, of so many files."""
    named = [FileDigest(path=f"part-{number:05d}", sha256="ab" * 32, size=9_123_456) for number in range(files)]
    return SourceDigest(uri=uri, files=named, **more)


def charts(steps: int) -> list[Chart]:
    """Return the curves of a run of so many steps, with a gap in the gradient norm's."""
    chance = random.Random(1)
    whole = range(1, steps + 1)
    loss: list[Point] = [(step, 0.42 + 1.6 * math.exp(-step / steps * 6) + chance.gauss(0, 0.03)) for step in whole]
    held_out: list[Point] = [
        (step, 0.51 + 1.8 * math.exp(-step / steps * 5)) for step in range(0, steps + 1, max(1, steps // 6))
    ]
    rate: list[Point] = [(step, 1e-4 * (1 + math.cos(math.pi * step / steps))) for step in whole]
    norm: list[Point] = [(step, None if step == 100 else 0.4 + abs(chance.gauss(0, 0.1))) for step in whole]
    return [
        Chart(
            title="Loss",
            about="Mean negative log-likelihood of a trained token, in nats.",
            series=[Series(name="Training", points=loss), Series(name="Held out", points=held_out)],
        ),
        chart("Learning rate", rate, from_zero=True),
        chart("Gradient norm", norm, from_zero=True),
        chart("Tokens per second", [(step, 12_800 + chance.gauss(0, 300)) for step in whole], from_zero=True),
        chart("Memory", [(step, (18.0 + 2 * (step > 20)) * 2**30) for step in whole], from_zero=True, unit="bytes"),
    ]


def chart(title: str, points: list[Point], **more: Any) -> Chart:
    """Return a chart of one line."""
    return Chart(title=title, about="Of the logged step.", series=[Series(name=title, points=points)], **more)
