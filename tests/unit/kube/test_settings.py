import json
import logging
from dataclasses import fields

import pytest
from prometheus_client import REGISTRY

from lorikeet_operator import logs, metrics
from lorikeet_operator.settings import Settings


def test_flags_win_over_the_environment_and_that_over_defaults() -> None:
    environment = {"LORIKEET_WORKERS": "4", "LORIKEET_QPS": "7.5", "LORIKEET_NAMESPACES": "a, b,"}
    settings = Settings.load(["--workers", "2"], environment)
    assert (settings.workers, settings.qps, settings.namespaces) == (2, 7.5, ("a", "b"))
    assert settings.burst == Settings().burst


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), (str(True), True), (str(False), False)])
def test_what_is_true_or_false_is_said_in_words(text: str, value: bool) -> None:
    assert Settings.load([], {"LORIKEET_NETWORK_POLICIES": text}).network_policies is value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "workers must be above 0, not 0"),
        (["--qps", "many"], "invalid float value: 'many'"),
        (["--agent-memory", "128Mi"], "agent_memory must be 256Mi or more, in Mi or Gi, not 128Mi"),
        (["--agent-memory", "1e9"], "agent_memory must be 256Mi or more, in Mi or Gi, not 1e9"),
        (["--log-level", "LOUD"], "log_level must be DEBUG, INFO, WARNING or ERROR, not LOUD"),
        (["--network-policies", "no"], "must be true or false, not no"),
        (["--wrokers", "1"], "unrecognized arguments: --wrokers 1"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(arguments, {})
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_tells_all_with_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Settings.load(["--help"], {})
    text = " ".join(capsys.readouterr().out.split())
    for each in fields(Settings):
        assert f"(LORIKEET_{each.name.upper()}, default: {each.default!r})" in text


def test_a_log_line_is_json_and_names_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up("INFO")
        with logs.about("finetunejob", "ns/a"):
            logging.getLogger("x").info("it %s", "runs")
        logging.getLogger("x").info("over")
        logging.getLogger("x").debug("unheard")
        logging.getLogger("kopf.objects").info("unheard")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "it runs"
    assert (first["controller"], first["key"]) == ("finetunejob", "ns/a")
    assert (first["level"], first["logger"]) == ("INFO", "x")
    assert first["time"].startswith("20")
    assert "key" not in second


def test_phases_are_counted_when_asked() -> None:
    phases = {"Running": 2}
    metrics.phase_gauge("lorikeet_test_phases", "for this test", lambda: phases)
    assert REGISTRY.get_sample_value("lorikeet_test_phases", {"phase": "Running"}) == 2
    phases["Running"] = 3
    assert REGISTRY.get_sample_value("lorikeet_test_phases", {"phase": "Running"}) == 3
