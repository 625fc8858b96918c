from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import components
from e2e.cluster.components import Component
from e2e.cluster.errors import ClusterError

GO = "go1.26.8"


@pytest.fixture
def module(tmp_path: Path) -> Component:
    (tmp_path / "main.go").write_text("package main")
    (tmp_path / "go.mod").write_text("module m")
    return Component("m", source=tmp_path)


def test_a_binary_is_kept_under_what_it_was_built_from(module: Component) -> None:
    before = components.key(module, GO)
    assert module.source is not None

    (module.source / "notes.txt").write_text("not built")
    assert components.key(module, GO) == before
    assert components.key(module, "go1.27.3") != before
    assert components.key(replace(module, ldflags="-X a=b"), GO) != before
    (module.source / "main.go").write_text("package main // changed")
    assert components.key(module, GO) != before


def test_another_version_of_a_package_is_another_binary() -> None:
    one, two = (Component("helm", package=f"helm.sh/helm@v{n}") for n in (1, 2))

    assert components.key(one, GO) != components.key(two, GO)


def test_every_version_is_pinned_and_binaries_are_stripped() -> None:
    for component in components.COMPONENTS:
        command, _ = components.command(component, Path("go"), Path("/out"))
        assert "-trimpath" in command
        assert any(argument.startswith("-s -w") for argument in command)
        assert component.source or component.package.rpartition("@")[2].startswith("v")


def test_an_old_go_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "go_version", lambda go: "go1.25.9")

    with pytest.raises(ClusterError) as caught:
        components.find_go()

    assert "1.26" in caught.value.cause
    assert "bootstrap.sh" in caught.value.fix


def test_what_is_built_is_not_built_again(module: Component, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(components, "find_go", lambda: Path("/nowhere/go"))
    monkeypatch.setattr(components, "go_version", lambda go: GO)
    monkeypatch.setitem(components.BY_NAME, "m", module)
    there = components.binary(module, GO)
    there.parent.mkdir(parents=True)
    there.touch()

    assert components.build(["m"], print) == {"m": there}


def test_a_failed_build_says_why_and_leaves_nothing(
    module: Component, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    failing = tmp_path / "go"
    failing.write_text("#!/bin/sh\necho 'main.go:1: no such thing' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(components, "find_go", lambda: failing)
    monkeypatch.setattr(components, "go_version", lambda go: GO)
    monkeypatch.setitem(components.BY_NAME, "m", module)

    with pytest.raises(ClusterError) as caught:
        components.build(["m"], lambda text: None)

    assert "no such thing" in caught.value.evidence
    assert list((tmp_path / "cache" / "lorikeet" / "components").iterdir()) == []


def test_the_binary_says_the_version_that_it_is_built_from() -> None:
    module = components.BY_NAME["kube"].source
    assert module is not None
    assert f"k8s.io/kubernetes {components.KUBERNETES_VERSION}\n" in (module / "go.mod").read_text()
