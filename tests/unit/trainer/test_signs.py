"""What a loss curve and answers tell of a run, on curves made by hand."""

import random
from collections.abc import Sequence

import pytest

from lorikeet_api.signs import Sign
from lorikeet_trainer.signs import Lookout, forgetting, repetition
from lorikeet_trainer.state import LossPoint


def logged(losses: Sequence[float], norms: Sequence[float | None] | float = 1.0, every: int = 1) -> list[LossPoint]:
    """Return a curve with a point every so many steps."""
    each = [norms] * len(losses) if isinstance(norms, float) else norms
    return [
        LossPoint(step=every * number, loss=loss, grad_norm=norm)
        for number, (loss, norm) in enumerate(zip(losses, each, strict=True), 1)
    ]


def with_held_out(losses: Sequence[float], held_out: Sequence[float]) -> list[LossPoint]:
    """Return a curve with an evaluation after each loss, at steps 10, 20, …: told before the loss, as runs do."""
    return [
        point
        for number, (loss, found) in enumerate(zip(losses, held_out, strict=True), 1)
        for point in (
            LossPoint(step=10 * number, eval_loss=found),
            LossPoint(step=10 * number, loss=loss, grad_norm=1.0),
        )
    ]


def seen(curve: Sequence[LossPoint], max_grad_norm: float = 1.0) -> list[tuple[str, int]]:
    lookout = Lookout(max_grad_norm)
    for end in range(1, len(curve) + 1):
        lookout.look(curve[:end])
    return [(sign.name, sign.step) for sign in lookout.seen]


FALLING = [2.0, 1.5, 1.2, 1.0, 0.9, 0.85, 0.8, 0.78]


def test_a_held_out_loss_that_rises_while_training_goes_on_falling_is_overfitting_from_its_lowest_on() -> None:
    assert seen(with_held_out(FALLING, [2.1, 1.7, 1.5, 1.45, 1.5, 1.6, 1.7, 1.8])) == [("Overfitting", 40)]


@pytest.mark.parametrize(
    ("losses", "held_out"),
    [
        pytest.param(FALLING, [2.1, 1.7, 1.5, 1.45, 1.47, 1.46, 1.48, 1.47], id="it stays where it is"),
        pytest.param(FALLING, [2.1, 1.7, 1.5, 1.45, 1.4, 1.38, 1.37, 1.36], id="both fall"),
        pytest.param([2.0, 1.5, 1.2, 1.0, 1.3, 1.6], [2.1, 1.7, 1.5, 1.45, 1.8, 2.1], id="both rise"),
        pytest.param([0.1, 0.05, 0.02, 0.01], [0.12, 0.03, 0.04, 0.06], id="by next to nothing"),
    ],
)
def test_no_overfitting_where(losses: list[float], held_out: list[float]) -> None:
    assert seen(with_held_out(losses, held_out)) == []


def test_a_loss_far_above_the_usual_is_a_spike_at_its_step() -> None:
    assert seen(logged([3.0, 2.4, 1.9, 1.5, 1.2, 0.95, 0.75, 0.6, 0.5, 4.0, 0.4])) == [("LossSpike", 10)]
    assert seen(logged([2.0, 1.8, 1.7, 1.6, 1.5, 1.45, 1.5, 1.4, 4.0, 1.4], every=10)) == [("LossSpike", 90)]


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([2.0, 1.8, 6.0, 1.7], id="too early to know what is usual"),
        pytest.param([*[0.02] * 10, 0.2], id="of next to nothing"),
        pytest.param([1.0, 1.9, 0.6, 2.5, 1.2, 0.5, 3.0, 0.9, 1.1, 3.2], id="no larger than they vary"),
        pytest.param([-1.0, 0.5, -0.2, 0.1, 0.4, -0.3, 0.2, 0.3, 5.0], id="of a loss that may be negative"),
    ],
)
def test_no_spike(losses: list[float]) -> None:
    assert seen(logged(losses)) == []


def test_a_gradient_that_is_clipped_hard_and_far_above_the_usual_explodes() -> None:
    norms = [2.0, 1.8, 2.2, 1.9, 2.1, 2.0, 1.9, 2.1, 80.0, 2.0]
    assert seen(logged([1.0] * 10, norms)) == [("ExplodingGradients", 9)]
    assert seen(logged([1.0] * 10, norms), max_grad_norm=10.0) == [], "hardly clipped"
    assert seen(logged([1.0] * 10, [norm / 20 for norm in norms])) == [], "the same"


def test_gradients_that_are_huge_from_the_beginning_explode_from_the_first_on() -> None:
    assert seen(logged([1.0] * 6, [500.0, 900.0, 700.0, 800.0, 600.0, 700.0])) == [("ExplodingGradients", 1)]
    assert seen(logged([1.0] * 6, [500.0, 900.0, 50.0, 800.0, 600.0, 700.0])) == []


def test_gradients_that_are_nothing_while_there_is_much_to_learn_vanish_from_the_first_on() -> None:
    norms = [0.5, 0.3, *[1e-5] * 6]
    assert seen(logged([2.0] * 8, norms)) == [("VanishingGradients", 3)]
    assert seen(logged([2.0] * 6, norms[:6])) == [], "four points may be chance"
    assert seen(logged([0.005] * 8, norms)) == [], "all is learnt"


@pytest.mark.parametrize("seed", range(10))
def test_losses_and_gradients_that_vary_as_those_of_single_examples_do_show_nothing(seed: int) -> None:
    chance = random.Random(seed)
    losses = [(1 + 2 * 0.99**step) * chance.lognormvariate(0, 0.4) for step in range(1000)]
    norms = [chance.lognormvariate(0, 0.7) for _ in losses]
    assert seen(logged(losses, norms)) == []


def test_a_run_that_goes_on_sees_what_the_attempt_before_saw() -> None:
    curve = with_held_out([*FALLING, 0.78, 6.0], [2.1, 1.7, 1.5, 1.45, 1.5, 1.6, 1.7, 1.8, 1.8, 1.9])
    lookout = Lookout(1.0)
    assert [(sign.name, sign.step) for sign in lookout.look_back(curve)] == seen(curve)
    assert seen(curve) == [("Overfitting", 40), ("LossSpike", 100)]
    assert lookout.look_back(curve) == [], "each is told once"


def test_where_the_losses_measure_different_things_neither_tells_of_overfitting() -> None:
    curve = with_held_out([*FALLING, 0.78, 6.0], [2.1, 1.7, 1.5, 1.45, 1.5, 1.6, 1.7, 1.8, 1.8, 1.9])
    lookout = Lookout(1.0, compares_losses=False)
    assert [sign.name for sign in lookout.look_back(curve)] == ["LossSpike"]


def sign(found: Sign | None) -> tuple[str, int] | None:
    return None if found is None else (found.name, found.step)


def test_answers_of_which_half_repeat_themselves_are_a_sign_unless_they_are_meant_to() -> None:
    assert sign(repetition(60, [0.0] * 4, [0.9, 0.8, 0.1, 0.0], [0.0] * 4)) == ("Repetition", 60)
    assert repetition(60, [0.0] * 4, [0.9, 0.3, 0.1, 0.0], [0.0] * 4) is None
    assert repetition(60, [0.0] * 4, [0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.0, 0.0]) is None
    assert repetition(60, [], [], []) is None


@pytest.mark.parametrize(
    ("before", "sampled", "found"),
    [
        pytest.param([0.0, 0.0], [[0.1, 0.0], [0.9, 0.8], [0.9, 0.7]], [("Repetition", 20)], id="twice in a row"),
        pytest.param([0.0, 0.0], [[0.9, 0.9], [0.0, 0.1], [0.9, 0.7]], [], id="not in a row"),
        pytest.param([0.9, 0.0], [[0.9, 0.0], [0.9, 0.0], [0.9, 0.0]], [], id="as before training"),
        pytest.param([0.9, 0.0], [[0.9, 0.0], [0.9, 0.9], [0.9, 0.9]], [("Repetition", 20)], id="more than before"),
        pytest.param([0.0, 0.0], [[], [], []], [], id="none could be sampled"),
    ],
)
def test_answers_on_the_way_are_a_sign_where_more_repeat_themselves_at_two_evaluations_than_before_training(
    before: list[float], sampled: list[list[float]], found: list[tuple[str, int]]
) -> None:
    curve = [LossPoint(step=10 * number, eval_loss=1.0, repeated=each) for number, each in enumerate(sampled, 1)]
    lookout = Lookout(1.0, repeated=before, meant=[0.0, 0.0])
    assert [(each.name, each.step) for each in lookout.look_back(curve)] == found


def test_a_loss_on_the_general_set_that_rose_by_a_tenth_of_a_nat_and_a_twentieth_is_forgetting() -> None:
    assert sign(forgetting(60, 1.0, 1.11)) == ("Forgetting", 60)
    assert forgetting(60, 1.0, 1.09) is None
    assert sign(forgetting(60, 4.0, 4.21)) == ("Forgetting", 60)
    assert forgetting(60, 4.0, 4.19) is None, "less than a twentieth"
    assert forgetting(60, 2.0, 1.5) is None, "it has learnt"
    found = forgetting(60, 1.23456, 2.34567)
    assert found is not None
    assert found.message == "the loss on the general set rose from 1.235 before training to 2.346"
