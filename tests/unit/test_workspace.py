"""What demo and scenarios make room for themselves by, and what they leave alone."""

import json
from typing import Any

import pytest

from e2e.target import S3, Target
from e2e.workspace import Workspace, clear


class Recorded(Target):
    """A cluster that notes what it is asked."""

    asked: list[tuple[Any, ...]] = []

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        self.asked.append((*arguments, json.loads(stdin or "null")))
        return ""


@pytest.fixture
def recorded() -> type[Recorded]:
    return type("Cluster", (Recorded,), {"asked": []})


def cluster(recorded: type[Recorded], *, is_development: bool) -> Recorded:
    store = S3("http://s3", "http://s3", "key", "secret")
    return recorded("", "here", store, "o", "a", "t", "e", "r", is_development=is_development)


def test_what_was_left_on_the_development_cluster_is_found_by_what_each_namespace_is_labelled_with(
    recorded: type[Recorded],
) -> None:
    here = cluster(recorded, is_development=True)
    Workspace(here, "demo-1").create()
    clear(here)
    made, removal = here.asked
    name, value = removal[removal.index("--selector") + 1].split("=")
    assert made[-1]["items"][0]["metadata"]["labels"][name] == value
    assert removal[:2] == ("delete", "namespaces")


def test_on_a_cluster_of_somebody_elses_nothing_is_removed(recorded: type[Recorded]) -> None:
    elsewhere = cluster(recorded, is_development=False)
    clear(elsewhere)
    assert elsewhere.asked == []
