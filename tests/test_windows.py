"""Sliding windows: which they are, and that their mean is what one pass over the whole image would give."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dada.evaluation.windows import slide, starts

side = st.integers(1, 40)


@settings(derandomize=True, deadline=None)
@given(length=side, crop=side, data=st.data())
def test_windows_lie_in_the_image_leave_no_pixel_out_and_end_at_the_border(length, crop, data):
    stride = data.draw(st.integers(1, crop))
    found = starts(length, crop, stride)
    inside = min(crop, length)
    assert found[0] == 0 and found[-1] + inside == length
    assert sorted(set(found)) == found and all(b - a <= stride for a, b in zip(found, found[1:]))
    # No more than it takes: mmsegmentation's count of windows.
    assert len(found) == max(length - crop + stride - 1, 0) // stride + 1


def pixelwise(image):
    """Three classes' logits, each a function of the pixel alone."""
    return torch.stack([image[:, 0] * image[:, 1], image[:, 2].sin(), image.sum(dim=1)], dim=1)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(size=st.tuples(side, side), crop=st.tuples(side, side), data=st.data())
def test_a_network_that_sees_single_pixels_gives_the_same_for_any_window_and_stride(size, crop, data):
    stride = tuple(data.draw(st.integers(1, side)) for side in crop)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slide(pixelwise, image, crop, stride, False), pixelwise(image))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("crop", [(16, 24), (50, 24), (99, 99)])
def test_one_window_over_the_image_is_the_whole_image(crop, align_corners):
    def coarse(image):
        return F.avg_pool2d(image, 4)

    image = torch.randn(1, 3, 16, 24)
    whole = F.interpolate(coarse(image), (16, 24), mode="bilinear", align_corners=align_corners)
    assert torch.equal(slide(coarse, image, crop, crop, align_corners), whole)


def test_pixels_in_several_windows_get_the_mean_of_their_scores():
    seen = []

    def number_of_the_window(image):
        seen.append(tuple(image.shape[-2:]))
        return torch.full((1, 1, 1, 1), float(len(seen)))

    found = slide(number_of_the_window, torch.zeros(1, 3, 2, 5), (9, 3), (9, 2), False)
    assert seen == [(2, 3), (2, 3)]
    assert found[0, 0].tolist() == [[1.0, 1.0, 1.5, 2.0, 2.0]] * 2
