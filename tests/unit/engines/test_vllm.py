"""How vLLM is started, and told of adapters while it runs."""

from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.modeldeployment import EngineChoice
from lorikeet_engines import ENGINES, EngineError, Launch
from tests.unit.agent.serving.engine import FakeEngine, Recorder, engine_running, metrics

VLLM = ENGINES["vllm"]


def choice(**settings: Any) -> EngineChoice:
    return EngineChoice.model_validate({"vllm": settings})


def started(settings: dict[str, Any], **changes: Any) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of an engine."""
    fields: dict[str, Any] = {
        "model": "/model",
        "base": "base-12345678",
        "port": 8000,
        "gpus": 1,
        "lora": True,
        "settings": choice(**settings),
    }
    container = VLLM.container(Launch(**{**fields, **changes}))
    assert container["command"] == ["vllm", "serve"]
    return container["args"], {each["name"]: each["value"] for each in container["env"]}


def value(args: list[str], flag: str) -> str:
    return args[args.index(flag) + 1]


def test_the_base_model_is_served_under_its_name() -> None:
    args, env = started({})
    assert args[0] == "/model"
    assert (value(args, "--served-model-name"), value(args, "--port")) == ("base-12345678", "8000")
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")


def test_adapters_are_loaded_while_it_runs() -> None:
    args, env = started({"maxLoras": 8, "maxLoraRank": 64}, adapters=[("sql-1", "/adapters/sql-1")])
    assert "--enable-lora" in args
    assert (value(args, "--max-loras"), value(args, "--max-lora-rank")) == ("8", "64")
    assert int(value(args, "--max-cpu-loras")) > 2 * 32, "old and new revisions of all at once"
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "--lora-modules" not in args


def test_or_it_is_started_with_them_and_takes_no_others() -> None:
    modules = [("a-1", "/adapters/a-1"), ("b-2", "/adapters/b-2")]
    args, env = started({"hotLoading": False}, adapters=modules)
    first = args.index("--lora-modules") + 1
    assert args[first : first + 2] == ["a-1=/adapters/a-1", "b-2=/adapters/b-2"]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in env
    assert "--lora-modules" not in started({"hotLoading": False})[0]


def test_without_adapters_it_has_no_room_for_any() -> None:
    args, env = started({}, lora=False)
    assert not [argument for argument in args if "lora" in argument]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in env


@pytest.mark.parametrize(
    ("settings", "gpus", "shared"), [({}, 1, None), ({}, 2, "2"), ({"tensorParallelSize": 4}, 8, "4")]
)
def test_gpus_share_the_model(settings: dict[str, Any], gpus: int, shared: str | None) -> None:
    args, _ = started(settings, gpus=gpus)
    assert (value(args, "--tensor-parallel-size") if "--tensor-parallel-size" in args else None) == shared


def test_users_settings_come_through() -> None:
    args, env = started(
        {"dtype": "float32", "maxModelLen": 2048, "args": ["--seed", "1"]},
        guard="lorikeet_guard.Guard",
        environment={"PYTHONPATH": "/guard"},
    )
    assert (value(args, "--dtype"), value(args, "--max-model-len")) == ("float32", "2048")
    assert value(args, "--middleware") == "lorikeet_guard.Guard"
    assert args[-2:] == ["--seed", "1"]
    assert env["PYTHONPATH"] == "/guard"
    assert "--max-model-len" not in started({})[0]


def test_what_it_takes_is_as_the_settings_say() -> None:
    settings = choice(maxLoraRank=128, hotLoading=False)
    assert (VLLM.max_lora_rank(settings), VLLM.hot_loading(settings)) == (128, False)
    assert (VLLM.max_lora_rank(choice()), VLLM.hot_loading(choice())) == (16, True)


@pytest.mark.parametrize(("running", "waiting"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_requests_in_flight_are_those_that_run_and_those_that_wait(running: int, waiting: int) -> None:
    assert VLLM.in_flight(metrics(running, waiting)) == running + waiting


def test_all_engine_cores_count() -> None:
    second = metrics(1, 2).replace('engine="0"', 'engine="1"')
    samples = [line for line in second.splitlines() if not line.startswith("#")]
    assert VLLM.in_flight(metrics(3, 0) + "\n".join(samples) + "\n") == 6


def test_an_engine_that_tells_no_count_is_not_taken_for_idle() -> None:
    with pytest.raises(ValueError, match="do not say how many requests"):
        VLLM.in_flight("# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info 1.0\n")


def adapter_in(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


async def test_loading_what_is_loaded_is_no_failure(tmp_path: Path) -> None:
    async with engine_running() as (engine, http):
        for status in (200, 400):
            await VLLM.load(http, "sql-1", adapter_in(tmp_path))
            assert await VLLM.served(http) == {engine.base, "sql-1"}
            assert status in [answer.status for answer in http.answers]


@pytest.mark.parametrize("status", [404, 500])
async def test_unloading_what_is_not_there_is_no_failure(tmp_path: Path, status: int) -> None:
    async with engine_running(unknown_status=status) as (engine, http):
        await VLLM.load(http, "sql-1", adapter_in(tmp_path))
        for answered in (200, status):
            await VLLM.unload(http, "sql-1")
            assert await VLLM.served(http) == {engine.base}
            assert answered in [answer.status for answer in http.answers]


async def test_a_refusal_has_its_words(tmp_path: Path) -> None:
    async with engine_running(refused={"sql-1": "rank 64 is greater than max_lora_rank"}) as (engine, http):
        with pytest.raises(EngineError, match="400: rank 64 is greater than max_lora_rank"):
            await VLLM.load(http, "sql-1", adapter_in(tmp_path))
        with pytest.raises(EngineError, match="404: No adapter found"):
            await VLLM.load(http, "sql-1", str(tmp_path / "nowhere"))
        assert engine.served == [engine.base]


async def test_warming_asks_for_one_answer(tmp_path: Path) -> None:
    async with engine_running() as (engine, http):
        await VLLM.load(http, "sql-1", adapter_in(tmp_path))
        await VLLM.warm(http, "sql-1")
        assert engine.count("complete", "sql-1") == 1
        engine.broken.add("sql-1")
        with pytest.raises(EngineError, match="500"):
            await VLLM.warm(http, "sql-1")


async def test_an_engine_that_is_gone_is_an_oserror() -> None:
    async with engine_running() as (engine, http):
        await engine.stop()
        for call in (VLLM.served(http), VLLM.load(http, "a", "/a"), VLLM.unload(http, "a"), VLLM.warm(http, "a")):
            with pytest.raises(OSError, match="does not answer"):
                await call


def test_the_fake_is_one_of_these() -> None:
    """The fake's ports and names are what these tests rest on."""
    assert FakeEngine().base == "base-12345678"
    assert Recorder is not None
