from pathlib import Path

import pytest

from e2e.cluster import checks, record, teardown
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import State

MOUNTS = """\
22 1 0:20 / / rw - ext4 /dev/a rw
30 22 0:30 / /checkout/.cluster/node/x rw - tmpfs tmpfs rw
31 30 0:31 / /checkout/.cluster/node/x/y\\040z rw - tmpfs tmpfs rw
32 22 0:32 / /checkout/.cluster-two rw - tmpfs tmpfs rw
"""


def test_mounts_below_a_folder_come_deepest_first() -> None:
    found = teardown.mounts_below(Path("/checkout/.cluster"), MOUNTS)

    assert found == [Path("/checkout/.cluster/node/x/y z"), Path("/checkout/.cluster/node/x")]


def test_a_folder_with_a_mount_in_it_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"30 22 0:30 / {tmp_path}/node/x rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr(teardown, "MOUNTINFO", mountinfo)
    (tmp_path / "node" / "x").mkdir(parents=True)

    with pytest.raises(ClusterError, match="still mounted"):
        teardown.remove_tree(tmp_path / "node")

    assert (tmp_path / "node" / "x").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', '{"processes": 3}'])
def test_half_a_record_is_no_record(tmp_path: Path, text: str) -> None:
    state = State(tmp_path)
    state.record.write_text(text)

    assert record.Record.load(state) is None


def test_missing_packages_are_named_once_each(tmp_path: Path) -> None:
    needed = {"no-such-program-1": "p", "no-such-program-2": "p", str(tmp_path): "q", f"{tmp_path}/no": "r", "sh": "s"}

    assert checks.missing(needed) == ["p", "r"]


def test_too_little_disk_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        checks.check_disk(tmp_path, 1 << 30)

    assert "XDG_CACHE_HOME" in caught.value.fix
    checks.check_disk(tmp_path, 0)


def test_an_error_shows_cause_evidence_and_fix() -> None:
    text = str(ClusterError("It broke.", "Mend it.", "line one\nline two\n"))

    assert text == "It broke.\n    line one\n    line two\nWhat to do: Mend it."
