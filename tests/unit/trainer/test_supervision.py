"""PID 1: how processes end, what that means, what is told of it."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lorikeet_api.contract import TERMINATION_LIMIT, RunRecord, StorageAccess
from lorikeet_run.errors import RunError, explain
from lorikeet_run.record import read_contract, write_record
from lorikeet_storage.errors import StorageError
from lorikeet_trainer import cgroup, lifecycle, processes
from lorikeet_trainer.processes import End
from lorikeet_trainer.state import StageResult
from tests import runs

PARENT = """
import json, sys
from lorikeet_trainer import processes
processes.KILL_AFTER_SECONDS = 0.2
children = processes.Children()
children.listen()
children.grace_seconds = 0.2
commands = [processes.Command([sys.executable, "-c", code], {}) for code in sys.argv[1:]]
ends = children.run(commands)
print(json.dumps({"ends": [[e.index, e.status, e.stderr_tail] for e in ends], "stopping": children.stopping}))
"""
FOREVER = "import signal; print('up', flush=True); signal.pause()"
DEAF = """
import pathlib, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
pathlib.Path({path!r}).touch()
signal.pause()
"""
KILLED = """
import os
while not os.path.exists({path!r}):
    os.sched_yield()
os.kill(os.getpid(), 9)
"""


def parent(*codes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, *codes], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ends_of(process: "subprocess.Popen[str]") -> tuple[list[list[object]], bool]:
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    told = json.loads(out.splitlines()[-1])
    return told["ends"], told["stopping"]


def test_exit_codes_pass_through() -> None:
    ends, _ = ends_of(parent("import sys; sys.exit(65)"))
    assert ends == [[0, 65, ""]]


def test_the_last_words_are_kept_and_passed_on() -> None:
    process = parent("import sys; [print(f'line {n}', file=sys.stderr) for n in range(99)]; sys.exit(1)")
    out, err = process.communicate(timeout=30)
    tail = json.loads(out.splitlines()[-1])["ends"][0][2]
    assert tail.endswith("line 98\n")
    assert "line 10\n" not in tail
    assert "line 10\n" in err


def test_a_failed_rank_takes_the_others_with_it(tmp_path: Path) -> None:
    path = str(tmp_path / "deaf")
    ends, stopping = ends_of(parent(KILLED.format(path=path), FOREVER, DEAF.format(path=path)))
    assert [end[:2] for end in sorted(ends)] == [[0, -9], [1, -15], [2, -9]]
    assert ends[0][0] == 0
    assert not stopping


@pytest.mark.parametrize(("code", "status"), [(FOREVER, -signal.SIGTERM), (DEAF, -signal.SIGKILL)])
def test_sigterm_is_passed_on_and_then_insisted_upon(tmp_path: Path, code: str, status: int) -> None:
    process = parent(code.format(path=str(tmp_path / "deaf")))
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    ends, stopping = ends_of(process)
    assert (ends[0][1], stopping) == (status, True)


def test_orphans_are_reaped_by_pid_1() -> None:
    """A grandchild whose parent is gone becomes a child of PID 1 (here: of a subreaper) and stays no zombie."""
    code = textwrap.dedent("""
        import ctypes, os, sys
        from lorikeet_trainer import processes
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        # A rank with an orphan of its own; it ends when the orphan's process is gone altogether, reaped.
        rank = '''
        import os
        told, tell = os.pipe()
        if os.fork() == 0:
            orphan = os.fork()
            if orphan:
                os.write(tell, str(orphan).encode())
            os._exit(0)
        os.wait()
        orphan = int(os.read(told, 20))
        while os.path.exists(f"/proc/{orphan}"):
            os.sched_yield()
        '''
        children = processes.Children()
        children.listen()
        import textwrap
        ends = children.run([processes.Command([sys.executable, "-c", textwrap.dedent(rank)], {})])
        print(ends[0].status)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "0"


HELPED = """
import json, pathlib, sys
from lorikeet_trainer import processes
children = processes.Children()
children.listen()
children.grace_seconds = {grace}
children.start_helper(processes.Command([sys.executable, "-c", sys.argv[1]], {{}}))
ends = children.run([processes.Command([sys.executable, "-c", sys.argv[2]], {{}})])
children.end_helper({seconds})
print(json.dumps([[end.status for end in ends], children.stopping]))
"""
UNTIL_EOF = "import pathlib, sys; sys.stdin.read(); pathlib.Path({path!r}).write_text('done')"


def test_a_helper_finishes_when_its_stdin_ends(tmp_path: Path) -> None:
    path = tmp_path / "finished"
    code = HELPED.format(grace=5, seconds=20)
    arguments = [sys.executable, "-c", code, UNTIL_EOF.format(path=str(path)), "pass"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == [[0], False]
    assert path.read_text() == "done"


def test_a_helper_that_does_not_finish_is_killed(tmp_path: Path) -> None:
    code = HELPED.format(grace=5, seconds=0.2)
    done = subprocess.run([sys.executable, "-c", code, FOREVER, "pass"], capture_output=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == b"[[0], false]"


def test_a_helper_that_fails_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    failing = f"open({str(path)!r}, 'a').write('x'); raise SystemExit(1)"
    rank = f"import os\nwhile not os.path.exists({str(path)!r}) or os.path.getsize({str(path)!r}) < 4: os.sched_yield()"
    code = HELPED.format(grace=5, seconds=0.2)
    subprocess.run([sys.executable, "-c", code, failing, rank], capture_output=True, timeout=30, check=True)
    assert path.read_text() == "xxxx", "and left alone after four times"


def test_nothing_new_is_started_in_a_run_that_stops_but_what_is_to_be_saved() -> None:
    children = processes.Children()
    children.stopping = True
    command = processes.Command([sys.executable, "-c", "pass"], {})
    assert children.run([command]) == []
    assert [end.status for end in children.run([command], even_stopping=True)] == [0]


@pytest.mark.parametrize(("asked_in", "stages"), [("train", ["prepare", "train", "publish"]), ("prepare", ["prepare"])])
def test_what_is_trained_to_its_end_is_published_though_the_run_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_in: str, stages: list[str]
) -> None:
    contract = tmp_path / "run.json"
    contract.write_text(runs.contract("s3://out/x", StorageAccess()).model_dump_json(by_alias=True, exclude_none=True))
    done: list[str] = []

    def run_stage(stage: str, of: object, options: object, children: processes.Children) -> StageResult:
        done.append(stage)
        children.stopping = children.stopping or stage == asked_in
        end = RunRecord(reason="Published", message="there") if stage == "publish" else None
        return StageResult(exit_code=0, record=end)

    monkeypatch.setattr(lifecycle, "_run_stage", run_stage)
    options = lifecycle.Options(contract, tmp_path, tmp_path / "termination")
    assert lifecycle.run(options, processes.Children()) == (0 if asked_in == "train" else 75)
    assert done == stages


def told(code: int, reason: str = "DataInvalid") -> StageResult:
    return StageResult(exit_code=code, record=RunRecord(reason=reason, message=reason))


def test_a_stage_that_ends_well_leads_to_the_next() -> None:
    result = lifecycle.judge("train", [End(0, 0, "")], {0: StageResult(exit_code=0)}, stopping=False, oom_killed=False)
    assert result == StageResult(exit_code=0)


@pytest.mark.parametrize(
    ("ends", "results", "oom", "code"),
    [
        ([End(0, 65, "")], {0: told(65)}, False, 65),
        # Rank 1 found that the data is bad; rank 0 only lost its peer, though it ended first.
        ([End(0, 70, ""), End(1, 65, "")], {0: told(70), 1: told(65)}, False, 65),
        ([End(1, 70, ""), End(0, -15, "")], {0: None, 1: told(70)}, False, 70),
        ([End(0, -9, "")], {0: None}, True, 66),
        # Something else was killed for memory, the rank itself failed on its own.
        ([End(0, 70, "")], {0: told(70)}, True, 70),
    ],
)
def test_ends_become_codes(ends: list[End], results: dict[int, StageResult | None], oom: bool, code: int) -> None:
    try:
        result = lifecycle.judge("train", ends, results, stopping=False, oom_killed=oom)
    except RunError as error:
        result = StageResult(exit_code=error.exit_code, record=error.record())
    assert result.exit_code == code


@pytest.mark.parametrize(("status", "how"), [(-9, "killed by SIGKILL"), (3, "exit code 3"), (0, "exit code 0")])
def test_a_rank_without_a_result_is_told_by_its_last_words(status: int, how: str) -> None:
    with pytest.raises(RunError, match=f"{how}.*without a result(.|\n)*Segmentation fault") as caught:
        lifecycle.judge(
            "train", [End(0, status, "noise\nSegmentation fault\n")], {0: None}, stopping=False, oom_killed=False
        )
    assert (caught.value.exit_code, caught.value.record().retryable) == (70, True)


def test_a_stop_outweighs_what_it_breaks() -> None:
    with pytest.raises(RunError) as caught:
        lifecycle.judge(
            "train", [End(0, -15, ""), End(1, 70, "")], {0: None, 1: told(70)}, stopping=True, oom_killed=False
        )
    assert (caught.value.reason, caught.value.exit_code) == ("Preempted", 75)


def test_what_was_published_before_the_stop_arrived_is_published() -> None:
    result = lifecycle.judge("train", [End(0, 0, "")], {0: told(0, "Published")}, stopping=True, oom_killed=False)
    assert result.record is not None
    assert result.record.reason == "Published"


def test_memory_that_files_alone_need_is_not_blamed_on_hyperparameters() -> None:
    with pytest.raises(RunError, match="raise the memory of") as caught:
        lifecycle.judge("prepare", [End(0, -9, "")], {0: None}, stopping=False, oom_killed=True)
    assert (caught.value.exit_code, "microBatchSize" in caught.value.message) == (66, False)


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (MemoryError(), "OutOfMemory", 66),
        (RuntimeError("CUDA error: out of memory"), "OutOfMemory", 66),
        (OSError(errno.ENOSPC, "No space left on device", "/var/lib/lorikeet/output"), "OutOfDisk", 66),
        (RuntimeError("shapes differ"), "InternalError", 70),
    ],
)
def test_what_does_not_fit_is_not_tried_again(error: Exception, reason: str, code: int) -> None:
    found = explain(error)
    assert (found.reason, found.exit_code) == (reason, code)


def test_a_supervisor_that_cannot_go_on_leaves_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> StageResult:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(lifecycle, "_run_stages", refused)
    log = tmp_path / "log"
    options = lifecycle.Options(tmp_path / "run.json", tmp_path, log)
    assert lifecycle.run(options, processes.Children()) == 70
    assert RunRecord.model_validate_json(log.read_bytes()).reason == "InternalError"


def test_the_record_fits_the_termination_message(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        lifecycle.judge("train", [End(0, -6, "Ä\x01\n" * 9000)], {0: None}, stopping=False, oom_killed=False)
    path = tmp_path / "log"
    write_record(caught.value.record().model_copy(update={"message": "\u0001ä" * 5000}), path)
    assert len(path.read_bytes()) < TERMINATION_LIMIT + 1
    assert RunRecord.model_validate_json(path.read_bytes()).reason == "InternalError"


def test_a_record_without_a_place_is_no_failure(tmp_path: Path) -> None:
    write_record(RunRecord(reason="Published", message=""), tmp_path / "no" / "such" / "folder")


@pytest.mark.parametrize("content", ["", "{", '{"version": "v2"}', '{"version": "v1", "surprise": 1}'])
def test_a_contract_of_another_release_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(RunError, match="same release") as caught:
        read_contract(path)
    assert (caught.value.reason, caught.value.exit_code) == ("InvalidContract", 64)


def test_only_stages_that_reach_storage_have_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "HF_TOKEN"}
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    prepare, probe, train, publish = (lifecycle.environment(stage, 1, 2, 4242) for stage in lifecycle.STAGES)
    assert secrets <= prepare.keys() & publish.keys()
    assert not secrets & (probe.keys() | train.keys())
    assert "HF_HUB_OFFLINE" not in prepare
    assert train["HF_HUB_OFFLINE"] == publish["HF_HUB_OFFLINE"] == "1"
    assert (train["RANK"], train["WORLD_SIZE"], train["MASTER_PORT"]) == ("1", "2", "4242")
    assert "RANK" not in lifecycle.environment("train", 0, 1, 4242)


@pytest.mark.parametrize(
    ("error", "reason", "code", "retryable"),
    [
        (StorageError("ModelNotFound", "gone"), "ModelNotFound", 64, False),
        (StorageError("DataInvalid", "bad"), "DataInvalid", 65, False),
        (StorageError("StorageUnreachable", "later", retryable=True), "StorageUnreachable", 70, True),
        (MemoryError(), "OutOfMemory", 66, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "OutOfMemory", 66, False),
        (ValueError("strange"), "InternalError", 70, True),
    ],
)
def test_every_failure_has_a_record(error: Exception, reason: str, code: int, retryable: bool) -> None:
    failure = explain(error)
    assert (failure.reason, failure.exit_code, failure.record().retryable) == (reason, code, retryable)


def test_cgroup_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "memory/pod/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "cpu/pod/cpu.cfs_quota_us": "150000\n",
        "cpu/pod/cpu.cfs_period_us": "100000\n",
    }
    _cgroup(tmp_path, monkeypatch, files, "4:memory:/pod\n3:cpu,cpuacct:/pod\n0::/\n")
    assert (cgroup.oom_kills(), cgroup.cpus()) == (3, 2)


def test_cgroup_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.events": "low 0\noom 1\noom_kill 1\n", "cpu.max": "100000 100000\n"}
    _cgroup(tmp_path, monkeypatch, files, "0::/\n")
    assert (cgroup.oom_kills(), cgroup.cpus()) == (1, 1)


def test_no_cgroup_no_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cgroup(tmp_path, monkeypatch, {"cpu.max": "max 100000\n"}, "0::/\n")
    assert (cgroup.oom_kills(), cgroup.cpus()) == (None, 8)


def _cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], membership: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(cgroup, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_log_lines_are_key_and_value() -> None:
    code = """
import logging
from lorikeet_run import log
log.set_up()
log.event("step", loss=0.123456789, message='say "hi" there', nothing=None)
logging.getLogger("bitsandbytes").warning("Failed to load CPU gemm_4bit_forward from kernels-community")
logging.getLogger("other").warning("real trouble")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.endswith('level=info event=step loss=0.123457 message="say \\"hi\\" there"')
    assert 'level=warning event=log logger=other message="real trouble"' in second


def test_the_first_import_of_pid_1_is_the_standard_library_alone() -> None:
    code = "import sys; import lorikeet_trainer.supervisor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "torch", "boto3", "lorikeet_api"} & set(loaded)


def test_preparing_needs_no_torch() -> None:
    code = "import sys; import lorikeet_trainer.prepare, lorikeet_trainer.publish; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "pyarrow"} & set(loaded)


def test_the_contract_is_the_one_that_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file comes from the pod's annotation, which may be changed at any time."""
    began = runs.contract("s3://out/a", StorageAccess())
    file = tmp_path / "run.json"
    file.write_text(json.dumps(began.to_wire()))
    seen: list[object] = []

    def stage(_: str, contract: object, options: lifecycle.Options, __: object) -> StageResult:
        seen.append(read_contract(options.contract))
        file.write_text(json.dumps(runs.contract("s3://elsewhere/b", StorageAccess()).to_wire()))
        return StageResult(exit_code=0)

    monkeypatch.setattr(lifecycle, "_run_stage", stage)
    lifecycle.run(lifecycle.Options(file, tmp_path / "work", tmp_path / "termination"), processes.Children())
    assert seen == [began] * 3
