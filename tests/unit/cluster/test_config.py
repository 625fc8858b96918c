import base64
import json
from pathlib import Path

import pytest

from e2e.cluster import config, pki
from e2e.cluster.config import Settings
from e2e.cluster.network import Addresses
from e2e.cluster.paths import State
from tests.golden import check_golden_text

PAIRS = {
    name: pki.Pair(f"{name} certificate", f"{name} key")
    for name in ("ca", "admin", "controller-manager", "scheduler", "kubelet", "proxy")
}


@pytest.fixture
def settings() -> Settings:
    return Settings(
        state=State(Path("/checkout/.cluster")),
        addresses=Addresses(33, "lk-00000021"),
        pause_image="lorikeet.local/pause:1",
        registry_storage=Path("/cache/registry"),
        bin=Path("/cache/kube"),
    )


GOLDEN_FILES = ["containerd.toml", "hosts.toml", "kubelet.yaml", "proxy.yaml", "registry.yaml", "10-lorikeet.conflist"]


@pytest.mark.parametrize("name", [*GOLDEN_FILES, "init.json"])
def test_the_configuration_is_the_golden_one(settings: Settings, name: str) -> None:
    rendered = {path.name: text for path, text in config.files(settings, PAIRS).items()}[name]
    check_golden_text(f"cluster/{name}", rendered)


def test_a_kubeconfig_needs_no_other_file(settings: Settings) -> None:
    document = json.loads(config.kubeconfig(settings.api_url, "the ca", PAIRS["admin"]))

    assert document["current-context"] == "lorikeet"
    assert document["clusters"][0]["cluster"]["server"] == "https://10.201.33.2:6443"
    user = document["users"][0]["user"]
    assert base64.b64decode(user["client-key-data"]) == b"admin key"
    assert not any("file" in key or key in ("client-certificate", "client-key") for key in user)


def test_two_state_folders_share_no_name(settings: Settings) -> None:
    other = State(Path("/elsewhere/.cluster"))

    assert other.id != settings.state.id
    assert State(Path("/elsewhere/.cluster")).id == other.id


def test_nothing_is_written_outside_the_state_folder(settings: Settings) -> None:
    assert all(path.is_relative_to(settings.state.node) for path in config.files(settings, PAIRS))
