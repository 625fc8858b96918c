"""The estimate of a run's memory, beside what was measured (bench/README.md) and published."""

from typing import Any

import pytest

from lorikeet_api.contract import StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Dataset, Method, Training
from lorikeet_run.memory import Decoder, estimate
from tests import runs

MIB = 1 << 20
GB = 1e9
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WEIGHTS = 2 * 6_738_415_616
ALL = {"targetModules": ["all-linear"]}


def needed(
    method: dict[str, Any], length: int, objective: dict[str, Any] | None = None, gpus: int = 1, **training: Any
) -> float:
    """Return the estimate for Llama 2 7B in bytes."""
    model = Decoder.of(LLAMA_2_7B, WEIGHTS)
    assert model is not None
    contract = runs.contract(
        "s3://out/run",
        StorageAccess(),
        dataset=Dataset.model_validate({"train": [{"uri": "s3://data/a.jsonl"}], "maxLength": length}),
        method=Method.model_validate(method),
        objective=Objective.model_validate(objective or {"sft": {}}),
        training=Training.model_validate(training),
        gpus=gpus,
    )
    return estimate(contract, model)


@pytest.mark.parametrize(
    ("method", "training", "measured"),
    [
        ({"qlora": {}}, {"microBatchSize": 1}, 5_160),
        ({"lora": {}}, {"microBatchSize": 4, "activationCheckpointing": False}, 50_600),
    ],
    ids=["qlora", "lora"],
)
def test_it_is_near_what_an_h200_has_measured(method: dict[str, Any], training: dict[str, Any], measured: int) -> None:
    context = 500  # of CUDA, which torch does not count
    assert needed(method, 2048, **training) / MIB == pytest.approx(measured + context, rel=0.2)


@pytest.mark.parametrize(
    ("length", "published"), [(1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32)]
)
def test_it_is_near_what_was_published_of_qlora(length: int, published: int) -> None:
    assert needed({"qlora": {"rank": 16, **ALL}}, length, microBatchSize=1) / GB == pytest.approx(published, rel=0.25)


def test_a_full_fine_tune_holds_sixteen_bytes_a_parameter_shared_out_over_the_gpus() -> None:
    alone = needed({"full": {}}, 8, microBatchSize=1)
    assert alone / GB == pytest.approx(16 * 6.74 + 0.8, rel=0.01)
    shared = needed({"full": {}}, 8, gpus=4, batchSize=4, microBatchSize=1)
    assert shared / GB == pytest.approx(16 * 6.74 / 4 + 0.8, rel=0.01)
    assert needed({"full": {}}, 8, microBatchSize=1, optimizer="adamw8bit") / alone == pytest.approx(10 / 16, rel=0.02)


LORA: dict[str, Any] = {"lora": {}}


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ((LORA, {}), (LORA, {"microBatchSize": 2})),
        ((LORA, {}), (LORA, {"activationCheckpointing": False})),
        ((LORA, {}), (LORA, {"precision": "fp32"})),
        ((LORA, {}), ({"lora": {"rank": 256}}, {})),
        ((LORA, {}), ({"lora": ALL}, {})),
        ((LORA, {}), ({"lora": {"modulesToSave": ["embed_tokens"]}}, {})),
        ((LORA, {}), ({"bottleneck": {}}, {})),
        (({"bottleneck": {}}, {}), ({"bottleneck": {"placement": "houlsby"}}, {})),
        (({"bottleneck": {}}, {}), ({"bottleneck": {"reductionFactor": 2}}, {})),
        (({"qlora": {}}, {}), ({"qlora": {"doubleQuant": False}}, {})),
        (({"qlora": {}}, {}), (LORA, {})),
        ((LORA, {}), (LORA, {"objective": {"dpo": {}}})),
        ((LORA, {"batchSize": 8}), (LORA, {"objective": {"kto": {}}, "microBatchSize": 2})),
    ],
)
def test_what_takes_more_is_said_to_take_more(
    less: tuple[dict[str, Any], dict[str, Any]], more: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    small, large = ({"microBatchSize": 1, **training} for _, training in (less, more))
    assert needed(less[0], 1024, **small) < needed(more[0], 1024, **large)


def test_rlhf_holds_a_full_model_a_second_time_unless_it_is_held_to_nothing() -> None:
    rewards = [{"regex": {"pattern": "a"}}]
    bound, free = (
        needed(
            {"full": {}}, 64, {"rlhf": {"rewards": rewards, "numGenerations": 2, "beta": beta}},
            batchSize=2, microBatchSize=2,
        )
        for beta in (0.1, 0)
    )  # fmt: skip
    assert (bound - free) / GB == pytest.approx(4 * 6.74, rel=0.01)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_embd": 768, "n_layer": 12},
        {**LLAMA_2_7B, "hidden_size": "wide"},
        {**LLAMA_2_7B, "num_local_experts": 8},
    ],
    ids=["empty", "other names", "no numbers", "experts"],
)
def test_of_a_model_whose_config_does_not_tell_nothing_is_said(config: dict[str, Any]) -> None:
    assert Decoder.of(config, WEIGHTS) is None
    assert Decoder.of({"text_config": LLAMA_2_7B}, WEIGHTS) is not None
