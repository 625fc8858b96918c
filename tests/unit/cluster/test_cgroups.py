from pathlib import Path

import pytest

from e2e.cluster import cgroups


def line(point: Path | str, kind: str) -> str:
    return f"36 25 0:30 / {point} rw,relatime shared:9 - {kind} {kind} rw"


def test_hierarchies_are_the_cgroup_mounts_of_both_versions() -> None:
    info = "\n".join([line("/", "ext4"), line("/cg/cpu", "cgroup"), line("/cg/a\\040b", "cgroup2")])

    assert cgroups.hierarchies(info) == [(Path("/cg/cpu"), False), (Path("/cg/a b"), True)]


def test_children_come_before_their_parents() -> None:
    paths = [Path("/a"), Path("/a/b"), Path("/a/b/c"), Path("/a/d")]

    assert cgroups.deepest_first(paths) == [Path("/a/b/c"), Path("/a/b"), Path("/a/d"), Path("/a")]


def test_removal_takes_the_whole_tree_and_nothing_beside_it(tmp_path: Path) -> None:
    for folder in ("cpu/ours/kubepods/pod1", "cpu/ours/kubepods/pod2", "cpu/theirs", "memory/ours"):
        (tmp_path / folder).mkdir(parents=True)
    info = "\n".join(line(tmp_path / h, "cgroup") for h in ("cpu", "memory", "pids"))

    assert cgroups.remove("ours", info) == []

    assert sorted(p.name for p in tmp_path.rglob("*")) == ["cpu", "memory", "theirs"]


def test_what_cannot_be_removed_is_told(tmp_path: Path) -> None:
    # A folder with a file stands for a cgroup that still has a process: rmdir refuses both.
    (tmp_path / "ours" / "busy").mkdir(parents=True)
    (tmp_path / "ours" / "busy" / "held").touch()

    left = cgroups.remove("ours", line(tmp_path, "cgroup"))

    assert left == [tmp_path / "ours" / "busy", tmp_path / "ours"]


def test_a_version_1_cpuset_gets_its_parents_processors(tmp_path: Path) -> None:
    (tmp_path / "cpuset.cpus").write_text("0-1\n")
    (tmp_path / "cpuset.mems").write_text("0\n")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "cpuset.cpus").write_text("\n")
    (tmp_path / "ours" / "cpuset.mems").write_text("0\n")

    cgroups.create("ours", line(tmp_path, "cgroup"))

    assert (tmp_path / "ours" / "cpuset.cpus").read_text() == "0-1\n"


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_creation_can_be_repeated(tmp_path: Path, kind: str) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "cgroup.controllers").write_text("cpu memory\n")

    cgroups.create("ours", line(tmp_path, kind))
    cgroups.create("ours", line(tmp_path, kind))

    # Version 2 hands controllers down explicitly, version 1 has no such file.
    assert (tmp_path / "cgroup.subtree_control").exists() == (kind == "cgroup2")
