"""What profile, defaults and request become together."""

from typing import Any

import pytest

from lorikeet_api.request import USUAL, Refused, hyperparameters
from lorikeet_operator.finetune.job import training_job
from lorikeet_operator.finetune.resolve import resolve
from tests.resources import job, profile

IMAGE = "trainer:test"


def test_a_short_request_gets_the_usual_values() -> None:
    training = resolve(job(), profile(), IMAGE).contract.training
    assert (training.learning_rate, training.epochs, training.batch_size) == (2e-4, 3, 16)
    assert (training.warmup_ratio, training.weight_decay) == (0.03, 0.0)


def test_a_full_fine_tune_gets_a_gentler_learning_rate() -> None:
    assert resolve(job(method={"full": {}}), profile(), IMAGE).contract.training.learning_rate == 1e-5


def test_the_request_goes_before_the_profile_and_the_profile_before_the_table() -> None:
    by_profile = profile(defaults={"training": {"learningRate": 1e-4, "epochs": 2}})
    training = resolve(job(training={"epochs": 5}), by_profile, IMAGE).contract.training
    assert (training.learning_rate, training.epochs, training.batch_size) == (1e-4, 5, 16)


def test_what_a_profile_asks_of_held_out_examples_is_left_out_where_there_are_none() -> None:
    asked = {
        "evalSteps": 5,
        "earlyStopping": {},
        "publish": "best",
        "checkpoints": {"keep": 3, "afterSuccess": "keepBest"},
        "signs": {"failOn": ["Overfitting", "LossSpike"]},
    }
    by_profile = profile(defaults={"training": asked})
    training = resolve(job(), by_profile, IMAGE).contract.training
    assert (training.eval_steps, training.early_stopping, training.publish) == (None, None, None)
    assert training.checkpoints is not None
    assert (training.checkpoints.keep, training.checkpoints.after_success) == (3, "delete")
    assert training.fails_on == ["LossSpike"]
    held_out = job(dataset={"train": [{"uri": "s3://datasets/a"}], "evalFraction": 0.1})
    kept = resolve(held_out, by_profile, IMAGE).contract.training
    assert kept.to_wire()["publish"] == "best"
    assert kept.fails_on == ["Overfitting", "LossSpike"]


def test_a_patience_of_nothing_switches_off_the_early_stopping_of_a_profile() -> None:
    by_profile = profile(defaults={"training": {"earlyStopping": {"patience": 2}}})
    dataset = {"train": [{"uri": "s3://datasets/a"}], "evalFraction": 0.1}
    usual = resolve(job(dataset=dataset), by_profile, IMAGE).contract
    assert usual.training.early_stopping is not None
    none = {"earlyStopping": {"patience": 0}}
    off = resolve(job(dataset=dataset, training=none), by_profile, IMAGE).contract
    assert off.training.early_stopping is None
    assert resolve(job(training=none), by_profile, IMAGE).contract.training.early_stopping is None
    assert off.run_id == resolve(job(dataset=dataset), profile(), IMAGE).contract.run_id


@pytest.mark.parametrize(
    ("in_job", "in_profile", "expected"),
    [(None, None, IMAGE), (None, "profile:1", "profile:1"), ("job:1", "profile:1", "job:1")],
)
def test_the_nearest_image_is_taken(in_job: str | None, in_profile: str | None, expected: str) -> None:
    compute = {"image": in_job} if in_job else {}
    images = {"trainer": in_profile} if in_profile else {}
    assert resolve(job(compute=compute), profile(images=images), IMAGE).image == expected


def test_a_gpu_class_brings_its_resource_and_its_nodes() -> None:
    classes = [
        {
            "name": "a100",
            "resourceName": "nvidia.com/mig-1g.10gb",
            "nodeSelector": {"gpu": "a100"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        }
    ]
    resolved = resolve(
        job(compute={"gpuClass": "a100", "nodeSelector": {"zone": "b"}}), profile(gpuClasses=classes), IMAGE
    )
    assert resolved.gpu_resource == "nvidia.com/mig-1g.10gb"
    assert resolved.compute.node_selector == {"gpu": "a100", "zone": "b"}
    assert [toleration.key for toleration in resolved.compute.tolerations or []] == ["gpu"]


def test_who_trains_on_the_cpu_is_not_given_the_profiles_gpu_class() -> None:
    usual = profile(gpuClasses=[{"name": "a100"}], defaults={"compute": {"gpuClass": "a100"}})
    resolved = resolve(job(compute={"gpus": 0}), usual, IMAGE)
    assert (resolved.compute.gpus, resolved.compute.gpu_class) == (0, None)


def test_an_unknown_gpu_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match=r"h100.*known: a100") as refused:
        resolve(job(compute={"gpuClass": "h100"}), profile(gpuClasses=[{"name": "a100"}]), IMAGE)
    assert refused.value.reason == "GpuClassUnknown"


def test_the_output_lies_below_the_profiles_storage_by_namespace_and_name() -> None:
    assert resolve(job(), profile(), IMAGE).contract.output_uri == "s3://adapters/team-a/sql-v1"
    own = resolve(job(output={"uri": "s3://mine/here/"}), profile(), IMAGE)
    assert own.contract.output_uri == "s3://mine/here"


def test_without_any_output_the_request_is_refused() -> None:
    with pytest.raises(Refused, match=r"output\.uri.*storage\.uri") as refused:
        resolve(job(), profile(storage={}), IMAGE)
    assert refused.value.reason == "OutputUnknown"


def test_a_profiles_micro_batch_that_does_not_divide_the_jobs_batch_is_refused() -> None:
    with pytest.raises(Refused, match="must divide") as refused:
        resolve(job(training={"batchSize": 9}), profile(defaults={"training": {"microBatchSize": 2}}), IMAGE)
    assert refused.value.reason == "InvalidSpec"


@pytest.mark.parametrize(("gpus", "micro"), [(0, 4), (1, 4), (2, 4), (8, 2), (16, 1)])
def test_the_micro_batch_is_of_one_ranks_share(gpus: int, micro: int) -> None:
    training = hyperparameters(job(objective={"kto": {}}), USUAL, profile(), gpus)
    assert (training.batch_size, training.micro_batch_size) == (16, micro)


@pytest.mark.parametrize(
    ("gpus", "objective", "micro"),
    [(1, "sft", None), (2, "dpo", None), (1, "reward", None), (0, "sft", 4), (1, "kto", 4), (1, "orpo", 4)],
)
def test_a_micro_batch_is_left_open_where_the_run_finds_it_by_trying(
    gpus: int, objective: str, micro: int | None
) -> None:
    asked = job(objective={objective: {}})
    assert hyperparameters(asked, USUAL, profile(), gpus).micro_batch_size == micro
    by_profile = profile(defaults={"training": {"microBatchSize": 2}})
    assert hyperparameters(asked, USUAL, by_profile, gpus).micro_batch_size == 2


@pytest.mark.parametrize(("training", "multiple"), [({}, 3), ({"microBatchSize": 8}, 24)])
def test_a_batch_that_ranks_cannot_share_is_refused_before_any_pod(training: dict[str, int], multiple: int) -> None:
    with pytest.raises(Refused, match=f"over 3 GPUs.*choose a multiple of {multiple}") as refused:
        hyperparameters(job(training=training), USUAL, profile(), 3)
    assert refused.value.reason == "InvalidSpec"


def test_a_micro_batch_decides_the_result_where_answers_are_compared_within_it() -> None:
    def run_id(objective: str, micro: int) -> str:
        asked = job(objective={objective: {}}, training={"microBatchSize": micro})
        return resolve(asked, profile(), IMAGE).contract.run_id

    assert run_id("sft", 2) == run_id("sft", 4) == resolve(job(), profile(), IMAGE).contract.run_id
    assert run_id("kto", 2) != run_id("kto", 4)


def test_equal_requests_have_equal_run_ids_wherever_they_are_made() -> None:
    first, second = resolve(job("a"), profile(), IMAGE), resolve(job("b"), profile("other"), "other:image")
    assert first.contract.run_id == second.contract.run_id


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"seed": 7}},
        {"method": {"lora": {}}},
        {"method": {"qlora": {"rank": 8}}},
        {"dataset": {"train": [{"uri": "s3://datasets/other.jsonl"}]}},
        {"model": {"uri": "s3://models/other"}},
    ],
)
def test_whatever_changes_the_result_changes_the_run_id(change: dict[str, Any]) -> None:
    assert resolve(job(), profile(), IMAGE).contract.run_id != resolve(job(**change), profile(), IMAGE).contract.run_id


def test_trackers_are_the_jobs_else_the_profiles_and_never_both() -> None:
    usual = profile(defaults={"tracking": {"tensorboard": {}, "mlflow": {"uri": "http://mlflow:5000"}}})
    by_profile = resolve(job(), usual, IMAGE).contract.tracking
    assert by_profile is not None
    assert by_profile.tensorboard is not None
    assert by_profile.mlflow is not None
    own = resolve(job(tracking={"wandb": {"project": "p", "mode": "offline"}}), usual, IMAGE).contract.tracking
    assert own is not None
    assert own.wandb is not None
    assert own.mlflow is None
    assert resolve(job(tracking={}), usual, IMAGE).contract.tracking is None
    assert resolve(job(), profile(), IMAGE).contract.tracking is None


GENERAL = {"uri": "s3://datasets/general.jsonl"}


def test_the_general_set_is_the_jobs_else_the_profiles_and_no_part_of_the_run_id() -> None:
    usual = profile(defaults={"general": GENERAL})
    own = job(dataset={"train": [{"uri": "s3://datasets/sql/train.jsonl"}], "general": {"uri": "s3://datasets/own"}})
    found = [resolve(each, by, IMAGE).contract for each in (job(), own) for by in (usual, profile())]
    general = [each.dataset.general and each.dataset.general.uri for each in found]
    assert general == [GENERAL["uri"], None, "s3://datasets/own", "s3://datasets/own"]
    assert len({each.run_id for each in found}) == 1


def test_a_job_that_is_to_fail_on_forgetting_needs_a_general_set_of_its_own_or_of_the_profile() -> None:
    failing = {"signs": {"failOn": ["Forgetting"]}}
    usual = profile(defaults={"general": GENERAL})
    assert resolve(job(training=failing), usual, IMAGE).contract.training.signs is not None
    for asked, by in (
        (job(training=failing), profile()),
        (job(), profile(defaults={"training": failing})),
        (job(training=failing, objective={"reward": {}}, method={"lora": {}}), usual),
    ):
        with pytest.raises(Refused, match=r"failOn has Forgetting.*set dataset\.general, or remove") as refused:
            resolve(asked, by, IMAGE)
        assert refused.value.reason == "InvalidSpec"


def test_a_reward_model_has_no_general_set() -> None:
    rewarding = job(objective={"reward": {}}, method={"lora": {}})
    assert resolve(rewarding, profile(defaults={"general": GENERAL}), IMAGE).contract.dataset.general is None


def test_a_profiles_general_set_may_lie_on_a_claim_of_the_jobs_namespace() -> None:
    asked, on_claim = job(), profile(defaults={"general": {"uri": "pvc://exams/general.jsonl"}})
    pod = training_job(asked, resolve(asked, on_claim, IMAGE), None)["spec"]["template"]["spec"]
    assert [
        each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each
    ] == ["exams"]


def test_who_follows_a_run_does_not_change_its_id() -> None:
    followed = job(tracking={"mlflow": {"uri": "http://mlflow:5000"}, "tensorboard": {}})
    ids = {resolve(each, profile(), IMAGE).contract.run_id for each in (followed, job())}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"training": {"learningRate": 0.01}}, "learningRate 0.01 is unusual for qlora sft (typical: 4e-05 to 0.001)"),
        ({"method": {"qlora": {"rank": 256}}}, "rank 256 is unusual (typical: 4 to 128)"),
        ({"training": {"epochs": 50}}, "epochs 50 is unusual (typical: 1 to 5)"),
        (
            {
                "dataset": {"train": [{"uri": "s3://datasets/a"}], "evalFraction": 0.1},
                "training": {"earlyStopping": {"patience": 2}},
            },
            "earlyStopping ends nothing: it waits for 2 evaluations after the lowest, and there are 2 on the way, one"
            " an epoch; set training.evalSteps",
        ),
    ],
)
def test_unusual_values_are_warned_about(change: dict[str, Any], warning: str) -> None:
    assert resolve(job(), profile(), IMAGE).warnings == []
    assert resolve(job(**change), profile(), IMAGE).warnings == [warning]
