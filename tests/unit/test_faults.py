"""Each fault that `make faults` applies is still at one place of ours, and has tests that are to see it."""

from pathlib import Path

import pytest

from scripts.faults import ROOT, Fault, read


@pytest.fixture(params=read(), ids=lambda fault: fault.what)
def fault(request: pytest.FixtureRequest) -> Fault:
    """One after the other."""
    found: Fault = request.param
    return found


def test_a_fault_has_one_place(fault: Fault) -> None:
    assert fault.places == 1


def test_the_tests_that_are_to_see_a_fault_are_there(fault: Fault) -> None:
    tests = ROOT / fault.test.split()[0]
    assert tests.exists()
    assert not Path(__file__).is_relative_to(tests), "this file is red with any fault, since its place is gone"
