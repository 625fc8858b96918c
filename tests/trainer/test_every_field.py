"""Nothing in the schema is without effect: each field that says how a run trains changes what comes out of it.

Walks the schema, so that a field that is added has to have its case here, or a test of its own that is named.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from lorikeet_api.base import Model
from lorikeet_api.finetunejob import JobModel
from lorikeet_api.objectives import Objective
from lorikeet_api.tracking import Tracking
from lorikeet_api.training import Columns, Dataset, Method, Training
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, Lab, open_lab
from tests.trainer.test_objectives import judged

pytestmark = pytest.mark.trainer

TESTS = Path(__file__).parents[1]
MODEL, TRAIN, PAIRS, JUDGED = (
    "s3://models/pretrained",
    "s3://datasets/train.jsonl",
    "s3://datasets/pairs.jsonl",
    "s3://datasets/judged.jsonl",
)
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}


@dataclass(frozen=True)
class Base:
    """What a field is set in: a run of two steps."""

    train: str = TRAIN
    method: dict[str, Any] = field(default_factory=lambda: {"lora": ADAPTER})
    objective: dict[str, Any] = field(default_factory=lambda: {"sft": {}})
    training: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)


LORA = Base()
EVALUATED = Base(dataset=HELD_OUT)
QLORA = Base(method={"qlora": ADAPTER})
FULL = Base(method={"full": {}})
BOTTLENECK = Base(method={"bottleneck": {}})
DPO = Base(PAIRS, objective={"dpo": {}})
KTO = Base(JUDGED, objective={"kto": {}})
ORPO = Base(PAIRS, objective={"orpo": {}})
REWARD = Base(PAIRS, objective={"reward": {}})
SAMPLING = {"numGenerations": 4, "maxCompletionLength": 8, "temperature": 3.0}
RLHF = Base(objective={"rlhf": {"rewards": [{"regex": {"pattern": "[ae]"}}], **SAMPLING}})
"""Hot enough that answers to one prompt differ, and are rewarded differently."""

ADAPTERS = {
    "rank": 4,
    "alpha": 8,
    "dropout": 0.5,
    "targetModules": ["q_proj"],
    "rsLora": True,
    "dora": True,
    "loraPlusRatio": 16,
    "modulesToSave": ["embed_tokens"],
}
CHANGES: dict[str, tuple[Base, Any]] = {
    "training.epochs": (Base(training={"maxSteps": None, "epochs": 0.2}), 0.4),
    "training.maxSteps": (LORA, 1),
    "training.learningRate": (LORA, 1e-3),
    "training.batchSize": (LORA, 4),
    "training.warmupRatio": (LORA, 0.5),
    "training.weightDecay": (LORA, 1.0),
    "training.scheduler": (LORA, "constant"),
    "training.optimizer": (FULL, "adamw8bit"),
    "training.precision": (Base(training={"precision": "fp32"}), "bf16"),
    "training.maxGradNorm": (LORA, 1e-3),
    "training.seed": (LORA, 2),
    "training.loggingSteps": (Base(training={"maxSteps": 3}), 3),
    "training.evalSteps": (EVALUATED, 1),
    "dataset.evalFraction": (LORA, 0.5),
    "dataset.trainOn": (LORA, "all"),
    "dataset.overlong": (Base(dataset={"maxLength": 27}), "truncate"),
    "dataset.maxLength": (LORA, 27),
    "dataset.packing": (LORA, True),
    **{f"method.lora.{name}": (LORA, value) for name, value in ADAPTERS.items()},
    "method.lora.init": (LORA, "olora"),
    **{f"method.qlora.{name}": (QLORA, value) for name, value in ADAPTERS.items()},
    "method.qlora.quantType": (QLORA, "fp4"),
    "method.qlora.doubleQuant": (QLORA, False),
    "method.bottleneck.reductionFactor": (BOTTLENECK, 8),
    "method.bottleneck.placement": (BOTTLENECK, "houlsby"),
    "objective.sft.neftuneAlpha": (LORA, 100),
    "objective.dpo.beta": (DPO, 1.0),
    "objective.dpo.loss": (DPO, "ipo"),
    "objective.dpo.labelSmoothing": (
        Base(PAIRS, objective={"dpo": {"loss": "robust", "labelSmoothing": 0.1}}),
        0.4,
    ),
    "objective.kto.beta": (KTO, 1.0),
    "objective.kto.desirableWeight": (KTO, 4.0),
    "objective.kto.undesirableWeight": (KTO, 4.0),
    "objective.orpo.beta": (ORPO, 1.0),
    "objective.reward.center": (REWARD, 1.0),
    "objective.rlhf.algorithm": (RLHF, "grpo"),
    "objective.rlhf.beta": (RLHF, 5.0),
    "objective.rlhf.numGenerations": (RLHF, 2),
    "objective.rlhf.maxCompletionLength": (RLHF, 4),
    "objective.rlhf.temperature": (RLHF, 1.0),
    "objective.rlhf.rewards.weight": (RLHF, 9.0),
}
"""The field, the run without it, and the value that must change something."""

DATA = ("train", "eval", "test", "general")
ELSEWHERE: dict[str, str] = {
    "training.microBatchSize": "trainer/test_train.py::test_accumulation_changes_how_often_a_model_is_run_and_no_loss",
    "training.activationCheckpointing": "trainer/test_train.py::"
    "test_activation_checkpointing_computes_again_and_changes_no_loss",
    "training.attention": "trainer/test_pace.py::test_a_run_computes_with_what_it_names",
    "training.kernels": "trainer/test_pace.py::test_a_run_fuses_what_it_is_to_compute_with_liger",
    "training.earlyStopping.patience": "trainer/test_selection.py::"
    "test_a_run_ends_once_the_held_out_loss_falls_no_longer",
    "training.earlyStopping.minDelta": "trainer/test_selection.py::"
    "test_patience_is_counted_from_the_last_loss_that_was_lower_enough",
    "training.publish": "trainer/test_selection.py::"
    "test_the_last_weights_may_be_published_and_the_best_ones_kept_beside",
    "training.checkpoints.everySteps": "trainer/test_resume.py::test_a_killed_run_ends_as_if_nothing_had_been",
    "training.checkpoints.keep": "trainer/test_resume.py::test_as_many_checkpoints_are_kept_as_the_request_says",
    "training.checkpoints.afterSuccess": "trainer/test_selection.py::"
    "test_the_last_weights_may_be_published_and_the_best_ones_kept_beside",
    "training.signs.failOn": "trainer/test_signs.py::"
    "test_a_sign_that_the_request_fails_on_ends_the_run_and_what_it_kept_is_gone_on_from",
    "training.stallTimeoutSeconds": "trainer/test_watchdog.py::"
    "test_a_rank_that_hangs_in_loading_and_one_in_the_collective_after_it_end_with_their_stacks",
    "dataset.train.weight": "trainer/test_train.py::test_a_mixture_is_trained_in_its_shares",
    **dict.fromkeys(
        ("dataset.test.uri", "dataset.general.uri"),
        "trainer/test_train.py::test_a_test_set_and_a_general_set_judge_before_training_and_at_the_end_alone",
    ),
    "dataset.format": "unit/run/test_data.py::test_a_row_of_two_formats_is_read_as_the_one_that_is_named",
    **{
        f"dataset.columns.{name}": "unit/run/test_columns.py::test_a_role_is_read_from_the_column_that_is_named"
        for name in Columns.model_fields
    },
    **dict.fromkeys(
        (f"dataset.{part}.{name}" for part in DATA for name in ("subset", "split")),
        "unit/storage/test_sources.py::test_of_a_whole_data_set_one_split_is_fetched_and_pinned",
    ),
    **{
        f"dataset.{part}.revision": "unit/storage/test_sources.py::test_data_of_a_tag_is_that_of_its_commit"
        for part in DATA
    },
    "objective.rlhf.rewards.model.uri": "trainer/test_rlhf.py::"
    "test_a_reward_model_leads_an_adapter_that_was_trained_before",
    "objective.rlhf.rewards.model.sha256": "unit/run/test_reward_models.py::"
    "test_what_is_not_what_was_pinned_is_refused",
    "objective.rlhf.rewards.model.fineTuneJobRef.name": "unit/finetune/test_start.py::"
    "test_a_reward_model_of_a_job_is_pinned_by_where_it_lies_and_what_it_is",
    "objective.rlhf.rewards.regex.pattern": "trainer/test_rlhf.py::"
    "test_a_rule_is_followed_on_unseen_prompts_and_a_stranger_agrees",
    "objective.rlhf.rewards.jsonSchema": "unit/run/test_rewards.py::"
    "test_an_answer_is_json_that_the_schema_takes_or_not",
    "objective.rlhf.rewards.match.column": "unit/run/test_rewards.py::test_an_answer_is_the_columns_or_not",
    "model.uri": "unit/storage/test_sources.py::test_a_model_of_the_hub_is_pinned_to_its_commit",
    "model.revision": "unit/storage/test_sources.py::test_a_model_of_a_tag_is_that_of_its_commit",
    "model.from.fineTuneJobRef.name": "unit/finetune/test_start.py::"
    "test_an_adapter_is_trained_further_on_its_own_base_by_its_own_method",
    **dict.fromkeys(
        ("model.secretRef.name", "tracking.mlflow.secretRef.name", "tracking.wandb.secretRef.name"),
        "unit/finetune/test_job.py::test_the_objects_of_a_run_are_the_golden_ones",
    ),
    **dict.fromkeys(
        ("tracking.mlflow.uri", "tracking.mlflow.experiment"),
        "trainer/test_tracking.py::test_mlflow_has_the_whole_curve_once_though_the_run_was_stopped",
    ),
    **dict.fromkeys(
        ("tracking.wandb.project", "tracking.wandb.entity", "tracking.wandb.mode"),
        "trainer/test_tracking.py::test_weights_and_biases_files_have_the_whole_curve_and_the_request",
    ),
    "tracking.wandb.baseUrl": "trainer/test_tracking.py::"
    "test_trackers_that_refuse_or_never_answer_cost_neither_run_nor_step",
}
"""Fields whose effect is not in weights or curve, or needs another set-up: the test that shows it."""

GIVEN = {"dataset.train.uri", "dataset.eval.uri"}
"""What every run here has."""


def model_of(annotation: Any) -> type[Model] | None:
    """Return the model that a field holds, alone, or in a list, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return next((found for part in parts if (found := model_of(part)) is not None), None)


def fields(model: type[Model], prefix: str) -> Iterator[str]:
    """Yield the fields of a model and of those in it, by their names in YAML."""
    for name, info in model.model_fields.items():
        path = f"{prefix}.{info.alias or name}"
        inside = model_of(info.annotation)
        if inside is None:
            yield path
        else:
            yield from fields(inside, path)


PARTS: dict[str, type[Model]] = {
    "dataset": Dataset,
    "method": Method,
    "model": JobModel,
    "objective": Objective,
    "tracking": Tracking,
    "training": Training,
}


def test_every_field_has_its_case() -> None:
    found = {path for prefix, model in PARTS.items() for path in fields(model, prefix)}
    assert len(found) > 60
    assert found == {*CHANGES, *ELSEWHERE, *GIVEN}
    assert not set(CHANGES) & set(ELSEWHERE)


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_a_test_that_is_named_is_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert name in {
        node.name
        for node in ast.parse((TESTS / path).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        pairs, _ = tiny.preferences()
        made.put_rows("pairs.jsonl", pairs[:16])
        made.put_rows("judged.jsonl", judged(pairs[:16]))
        yield made


_known: dict[str, Any] = {}


def outcome(lab: Lab, base: Base, path: str = "", value: Any = None) -> Any:
    """Return what a run has published: digests of its weights, and its loss curve."""
    spec: dict[str, Any] = json.loads(
        json.dumps(
            {
                "method": base.method,
                "objective": base.objective,
                "dataset": base.dataset,
                "training": {"maxSteps": 2, "loggingSteps": 1, "learningRate": 1e-2, "batchSize": 8, **base.training},
            }
        )
    )
    if path:
        *parents, last = path.split(".")
        place: Any = spec
        for parent in parents:
            place = place.setdefault(parent, {})
            place = place[0] if isinstance(place, list) else place
        place[last] = value
    key = json.dumps([base.train, spec], sort_keys=True)
    if key not in _known:
        contract = lab.contract(spec.pop("method"), MODEL, base.train, **spec)
        result = lab.run(contract)
        assert result.exit_code == 0, result.record
        curve = json.loads(lab.fetch(contract, "metrics.json"))["curve"]
        weights = [file for file in lab.manifest(contract).files if file.path.endswith(".safetensors")]
        _known[key] = ([(file.path, file.sha256) for file in weights], curve)
    return _known[key]


def test_the_same_run_twice_comes_to_the_same(lab: Lab) -> None:
    """Without this a difference would say nothing."""
    first = outcome(lab, LORA)
    _known.clear()
    assert outcome(lab, LORA) == first


@pytest.mark.parametrize("path", list(CHANGES))
def test_a_field_changes_what_is_trained_or_how_it_is_judged(lab: Lab, path: str) -> None:
    base, value = CHANGES[path]
    assert outcome(lab, base, path, value) != outcome(lab, base)
