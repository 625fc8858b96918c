import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import addons, cluster
from e2e.cluster.errors import ClusterError
from e2e.cluster.network import Addresses
from e2e.cluster.paths import State, lock, write_atomically
from e2e.cluster.process import ProcessRef
from e2e.cluster.record import Record


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State(tmp_path)
    found.log.mkdir()
    found.node.mkdir()
    return found


@pytest.fixture
def record(state: State) -> Record:
    this = ProcessRef.of(os.getpid())
    assert this is not None
    texts = dict.fromkeys(Record.__dataclass_fields__, "x")
    return Record(**{**texts, "slot": 33, "processes": (this,)})  # type: ignore[arg-type]


def tell(state: State, **components: dict[str, Any]) -> None:
    state.init_state.write_text(json.dumps(components))


def never() -> bool:
    return False


def test_waiting_ends_when_it_holds(state: State, record: Record) -> None:
    answers = iter([False, False, True])

    cluster.Waiter(state, record)("it holds", lambda: next(answers))

    assert next(answers, None) is None


def test_a_component_that_keeps_ending_is_named_with_the_last_lines_of_its_log(state: State, record: Record) -> None:
    tell(state, etcd={"pid": 0, "restarts": cluster.CRASHES, "lastExit": "exit code 1"})
    (state.log / "etcd.log").write_text("".join(f"line {n}\n" for n in range(100)) + "disk is full\n")

    with pytest.raises(ClusterError, match="etcd keeps ending") as caught:
        cluster.Waiter(state, record)("x", never)

    assert caught.value.evidence.endswith("disk is full")
    assert len(caught.value.evidence.splitlines()) < 20


def test_the_end_of_the_first_process_is_told(state: State, record: Record) -> None:
    ended = replace(record, processes=(ProcessRef(os.getpid(), 1, "another boot"),))
    (state.log / "init.log").write_text("mount: permission denied\n")

    with pytest.raises(ClusterError, match="first process has ended") as caught:
        cluster.Waiter(state, ended)("x", never)

    assert "permission denied" in caught.value.evidence


def test_a_deadline_says_what_it_waited_for(state: State, record: Record) -> None:
    with pytest.raises(ClusterError, match="still not true: the moon is green"):
        cluster.Waiter(state, record)("the moon is green", never, seconds=0)


def no_record(state: State, record: Record) -> None:
    state.record.unlink()


def ended(state: State, record: Record) -> None:
    replace(record, processes=(ProcessRef(os.getpid(), 1, "another boot"),)).save(state)


def no_link(state: State, record: Record) -> None:
    replace(record, link="lk-none").save(state)


@pytest.mark.parametrize(
    ("hurt", "why"), [(no_record, "no record"), (ended, "processes have ended"), (no_link, "link is gone")]
)
def test_what_is_wrong_with_a_cluster_is_told(
    state: State, record: Record, hurt: Callable[[State, Record], None], why: str
) -> None:
    record.save(state)

    hurt(state, record)

    health = cluster.health(state)
    assert not health.ok
    assert why in health.why


def test_a_cluster_that_mends_itself_is_given_time(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([cluster.Health(False, "busy", passing=True)] * 3 + [cluster.Health(True)])
    monkeypatch.setattr(cluster, "health", lambda state: next(answers))

    assert cluster.settled_health(state).ok


def test_a_cluster_that_does_not_mend_itself_is_given_up(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "health", lambda state: cluster.Health(False, "busy", passing=True))

    assert not cluster.settled_health(state, seconds=0).ok


def test_a_cluster_that_is_gone_is_not_waited_for(state: State) -> None:
    assert cluster.settled_health(state, seconds=1e9).why == "there is no record of it"


def test_the_record_is_read_as_it_was_written_and_is_for_its_owners_eyes_only(state: State, record: Record) -> None:
    record.save(state)

    assert Record.load(state) == record
    assert state.record.stat().st_mode & 0o077 == 0


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", "one")
    write_atomically(tmp_path / "f", "two")

    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "two")]


def test_a_lock_can_be_taken_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "l"):
        raise ZeroDivisionError

    with lock(tmp_path / "l"):
        assert (tmp_path / "l").exists()


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for o in objects if o["kind"] == "Deployment" for c in o["spec"]["template"]["spec"]["containers"]]


def test_addons_keep_to_the_strictest_pod_security() -> None:
    address = Addresses(33, "lk").dns_service
    for objects in (addons.dns("dns:1", address), addons.s3("s3:1", "/data", "key", "secret")):
        for container in containers(objects):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_s3s_credentials_are_in_its_secret_and_nowhere_else() -> None:
    objects = addons.s3("s3:1", "/data", "the-key", "the-secret")

    kinds = [o["kind"] for o in objects if "the-secret" in json.dumps(o) or "the-key" in json.dumps(o)]
    assert kinds == ["Secret"]
