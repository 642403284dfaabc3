"""Class frequencies and overlap, against counting pair by pair."""

import numpy as np
import pytest

from dada.dataset.statistics import class_frequencies, class_overlap

COUNTS = np.array([[6, 0, 2], [3, 0, 0], [0, 0, 0], [1, 0, 4]])  # four images, three classes


def test_frequencies_are_shares_of_labelled_pixels_and_of_all_images():
    shares = class_frequencies(COUNTS)
    assert shares.pixels.tolist() == [10 / 16, 0, 6 / 16]
    assert shares.images.tolist() == [3 / 4, 0, 2 / 4]


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_frequencies_of_nothing_are_zero(shape):
    shares = class_frequencies(np.zeros(shape, dtype=int))
    assert not shares.pixels.any() and not shares.images.any()


@pytest.mark.parametrize("seed", range(5))
def test_the_overlap_is_that_of_all_pairs_counted_one_by_one(seed):
    rng = np.random.default_rng(seed)
    k = 6
    source, target = (rng.poisson(rng.uniform(0, 1.5, k), (n, k)) for n in (17, 11))
    both, left, right = np.zeros(k), np.zeros(k), np.zeros(k)
    any_left = any_right = 0
    for a in source:
        for b in target:
            both += (a > 0) & (b > 0)
            left += (a > 0) & (b == 0)
            right += (a == 0) & (b > 0)
            any_left += any(x > 0 and y == 0 for x, y in zip(a, b))
            any_right += any(x == 0 and y > 0 for x, y in zip(a, b))
    pairs = len(source) * len(target)
    overlap = class_overlap(source, target)
    np.testing.assert_allclose(overlap.both, both / pairs)
    np.testing.assert_allclose(overlap.source_only, left / pairs)
    np.testing.assert_allclose(overlap.target_only, right / pairs)
    assert overlap.any_source_only == pytest.approx(any_left / pairs)
    assert overlap.any_target_only == pytest.approx(any_right / pairs)


def test_the_directions_are_not_mixed_up():
    overlap = class_overlap(np.array([[5, 0]]), np.array([[1, 7]]))
    assert (overlap.both[0], overlap.source_only[1], overlap.target_only[1]) == (1.0, 0.0, 1.0)
    assert (overlap.any_source_only, overlap.any_target_only) == (0.0, 1.0)
