"""The mixture of sources and the held-out share."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet_run.batches import batched
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Example
from lorikeet_run.mixture import mix, split


def texts(*names: str) -> list[Example]:
    return [Example(f"row {number}", "all", text=name) for number, name in enumerate(names)]


def test_without_weights_every_example_is_seen_once() -> None:
    assert sorted(mix([2, 3], None, seed=1)) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_weights_share_out_an_epoch_as_large_as_all_sources() -> None:
    chosen = mix([90, 10], [1, 1], seed=1)
    assert Counter(source for source, _ in chosen) == {0: 50, 1: 50}
    repeats = Counter(chosen)
    assert max(count for (source, _), count in repeats.items() if source == 0) == 1
    assert {count for (source, _), count in repeats.items() if source == 1} == {5}


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 1000)), min_size=1, max_size=6),
    st.integers(0, 2**31 - 1),
)
def test_a_mixture_is_exact_and_reproducible(sources: list[tuple[int, float]], seed: int) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    chosen = mix(sizes, weights, seed)
    assert len(chosen) == sum(sizes)
    assert chosen == mix(sizes, weights, seed)
    for source, weight in enumerate(weights):
        seen = [index for which, index in chosen if which == source]
        assert abs(len(seen) - sum(sizes) * weight / sum(weights)) <= 1
        # No example is seen twice more often than another.
        counts = [seen.count(index) for index in range(sizes[source])]
        assert max(counts) - min(counts) <= 1


def test_another_seed_draws_others() -> None:
    assert mix([100, 100], [1, 9], seed=1) != mix([100, 100], [1, 9], seed=2)


def test_a_weight_without_examples_is_refused() -> None:
    with pytest.raises(RunError, match="training source 2 has no example left"):
        mix([5, 0], [1, 1], seed=1)


@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=20), min_size=1, max_size=3),
    st.floats(0.01, 0.5),
    st.integers(0, 1000),
)
def test_a_held_out_example_is_never_trained_on(sources: list[list[str]], fraction: float, seed: int) -> None:
    given_sources = [texts(*names) for names in sources]
    if len({name for names in sources for name in names}) < 2:
        with pytest.raises(RunError, match="two different examples"):
            split(given_sources, fraction, seed)
        return
    parts = split(given_sources, fraction, seed)
    held_out = {example.content for example in parts.held_out}
    trained = {example.content for source in parts.train for example in source}
    assert held_out
    assert trained
    assert not held_out & trained
    assert sum(map(len, parts.train)) + len(parts.held_out) == sum(map(len, sources))
    assert parts == split(given_sources, fraction, seed)


def test_the_share_held_out_is_the_one_asked_for() -> None:
    names = [f"text {number}" for number in range(200)]
    first, second = split([texts(*names)], 0.1, 1), split([texts(*names)], 0.1, 2)
    assert len(first.held_out) == len(second.held_out) == 20
    assert first.held_out != second.held_out


def test_batches_keep_order_and_all() -> None:
    assert list(batched([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
