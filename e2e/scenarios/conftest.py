"""Lorikeet on the cluster, and a namespace for each test; what failed tells its story."""

import secrets
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from e2e import colours
from e2e.demo import DATA, MODEL, material
from e2e.deploy import install
from e2e.serving import wait_for
from e2e.sharing import Groups, among_others, group_of, once, shared_folder
from e2e.small import upload_model
from e2e.target import Target, TargetError, target
from e2e.workspace import Workspace, clear


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Name the scheduler."""
    return Groups(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Keep a scenario that is to be alone apart from the cluster's others; nobody's time limit counts the waiting."""
    if group_of(item.nodeid) == "clusters of their own":
        return (yield)
    with among_others(shared_folder(item.config), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a test's outcome where its fixtures find it."""
    report = yield
    setattr(item, f"report_{report.when}", report)
    return report


@pytest.fixture(scope="session")
def lorikeet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """The cluster with the operator installed, a default profile, and the demo's model and data in S3."""
    try:
        found = target()
    except TargetError as error:
        pytest.fail(str(error))
    with once(shared_folder(request.config), "lorikeet") as to_be_made:
        if to_be_made:
            install(found)
            clear(found)
            _pull_agent(found)
            shared = Workspace(found, "default")
            model, data = material(tmp_path_factory.mktemp("material"))
            shared.upload_folder(model, *MODEL)
            shared.upload_folder(data, *DATA)
            shared.bucket("adapters")
    return found


def _pull_agent(found: Target) -> None:
    """Have the node pull the agent's image, so that what it says of a first job is timed like that of a second."""
    name = f"pull-{secrets.token_hex(3)}"
    run = ("run", name, f"--image={found.agent_image}", "--restart=Never", "--", "--help")
    found.kubectl("-n", "default", *run)
    found.kubectl("-n", "default", "wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s")
    found.kubectl("-n", "default", "delete", "pod", name, "--wait=false")


@pytest.fixture(scope="session")
def small(lorikeet: Target, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the base model of small jobs (`e2e.small`)."""
    return upload_model(lorikeet, tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def colours_base(lorikeet: Target, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the base model of `e2e.colours`."""
    return colours.upload_base(lorikeet, tmp_path_factory.mktemp("colours") / "model")


@pytest.fixture(scope="session")
def colours_served(lorikeet: Target, colours_base: str) -> Iterator[Workspace]:
    """A namespace in which two engines serve two adapters, for all scenarios that leave them as they are.

    One was first taught another colour by another job, the other was trained on parts of the base itself.
    """
    here = Workspace(lorikeet, f"e2e-{secrets.token_hex(3)}")
    here.create()
    here.apply(colours.job(here, "first", colours_base, "green"))
    here.apply(colours.further(here, "warm", "red", earlier="first"))
    here.apply(colours.on_components(here, "cold", colours_base, "blue"))
    here.apply(colours.deployment(colours_base))
    yield here
    here.delete()


@pytest.fixture
def served_colours(colours_served: Workspace, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """That namespace, with everything ready."""
    wait_for(colours_served, colours.NAME, "Ready", 600)
    yield colours_served
    report = getattr(request.node, "report_call", None)
    if report is not None and report.failed:
        print(colours_served.story())


@pytest.fixture
def workspace(lorikeet: Target, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """A namespace of the test's own; if the test fails, what was in it is printed."""
    here = Workspace(lorikeet, f"e2e-{secrets.token_hex(3)}")
    here.create()
    yield here
    report = getattr(request.node, "report_call", None)
    if report is not None and report.failed:
        print(here.story())
    here.delete()
