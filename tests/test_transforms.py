import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dada.dataset.sampler import seeded
from dada.dataset.transforms import EvalTransform, TrainTransform, _photometric, resize_depth
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB


def raw_pixels(image):
    return image.float()


def joint(width, height):
    """Image, label and depth that say the same thing: each pixel's own number, below 255."""
    assert width * height < 255
    ids = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    return Image.fromarray(np.repeat(ids[..., None], 3, axis=2)), Image.fromarray(ids), ids.astype(np.float32)


@pytest.mark.parametrize("crop", [None, (6, 8), (20, 30), (6, 30), (20, 8)])
def test_image_label_and_depth_move_together(crop):
    image, label, depth = joint(width=18, height=12)
    transform = TrainTransform(raw_pixels, crop=crop)
    placements = set()
    for seed in range(20):
        with seeded(seed):
            views = transform(image, label, depth)
        inside = views.label != 255
        assert views.image.shape[1:] == views.label.shape == views.depth.shape == (crop or (12, 18))
        assert inside.any()
        for plane in (*views.image, views.depth):
            assert torch.equal(plane[inside], views.label[inside].float())
            assert (plane[~inside] == 0).all()
        placements.add(tuple(views.label[0, :2].tolist()))
    assert len(placements) > 1  # flips, and places where there is a choice


def test_padding_lies_right_and_below_also_when_flipped():
    image, label, _ = joint(width=4, height=3)
    for flip in (0.0, 1.0):
        views = TrainTransform(raw_pixels, crop=(5, 7), flip=flip)(image, label)
        want = np.asarray(label)[:, ::-1] if flip else np.asarray(label)
        np.testing.assert_array_equal(views.label[:3, :4], want)
        assert (views.label[3:] == 255).all() and (views.label[:, 4:] == 255).all()


def test_padding_is_black_before_normalisation():
    views = TrainTransform(CAFFE_BGR, crop=(2, 4), flip=0.0)(Image.new("RGB", (3, 2), (9, 9, 9)))
    torch.testing.assert_close(views.image[:, 0, 3], -torch.tensor(CAFFE_BGR.mean))


def test_every_crop_place_is_reached_evenly():
    image, label, _ = joint(width=5, height=3)
    transform = TrainTransform(raw_pixels, crop=(2, 3), flip=0.0)
    torch.manual_seed(0)
    corners = torch.tensor([transform(image, label).label[0, 0] for _ in range(600)])
    places, counts = corners.unique(return_counts=True)
    assert places.tolist() == [0, 1, 2, 5, 6, 7]
    assert counts.min() > 60


def test_shorter_side_is_drawn_with_both_ends_and_the_aspect_kept():
    transform = TrainTransform(raw_pixels, load_size=(6, 9), flip=0.0)
    torch.manual_seed(0)
    for width, height, longer in ((20, 10, 2.0), (10, 20, 2.0), (13, 13, 1.0), (19, 10, 1.9)):
        shapes = {tuple(transform(Image.new("RGB", (width, height))).image.shape[1:]) for _ in range(100)}
        assert {min(shape) for shape in shapes} == {6, 7, 8, 9}
        assert all(max(shape) == int(min(shape) * longer) for shape in shapes)
        assert all((shape[0] <= shape[1]) == (height <= width) for shape in shapes)


def test_random_resize_uses_pillows_bilinear_and_nearest():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (11, 17, 3), dtype=np.uint8))
    label = Image.fromarray(rng.integers(0, 16, (11, 17), dtype=np.uint8))
    views = TrainTransform(raw_pixels, load_size=(23, 23), flip=0.0)(image, label)
    size = (int(23 * 17 / 11), 23)
    np.testing.assert_array_equal(views.image.permute(1, 2, 0), np.asarray(image.resize(size, Image.BILINEAR)))
    np.testing.assert_array_equal(views.label, np.asarray(label.resize(size, Image.NEAREST)))


def test_output_is_plain_contiguous_tensors_of_the_documented_types():
    image, label, depth = joint(8, 6)
    for transform in (
        TrainTransform(TORCHVISION_RGB, crop=(4, 4), color_jitter=0.3, second_view=True),
        EvalTransform(TORCHVISION_RGB, size=(4, 3)),
    ):
        views = transform(image, label, depth)
        for tensor, dtype in zip(views, (torch.float32, torch.int64, torch.float32, torch.float32)):
            if tensor is not None:
                assert type(tensor) is torch.Tensor and tensor.dtype == dtype and tensor.is_contiguous()


def test_missing_label_and_depth_stay_missing():
    views = TrainTransform(raw_pixels, crop=(4, 4))(Image.new("RGB", (8, 6)))
    assert views.label is None and views.depth is None and views.view is None


def test_colour_changes_touch_the_image_only():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    _, label, depth = joint(8, 6)
    plain = TrainTransform(raw_pixels, flip=0.0)(image, label, depth)
    torch.manual_seed(0)
    changed = TrainTransform(raw_pixels, flip=0.0, color_jitter=0.5)(image, label, depth)
    assert not torch.allclose(changed.image, plain.image, atol=1.0)
    assert changed.image.min() >= 0 and changed.image.max() <= 255.001
    assert torch.equal(changed.label, plain.label) and torch.equal(changed.depth, plain.depth)


def test_jitter_strength_bounds_the_change_of_brightness():
    image = Image.new("RGB", (4, 4), (100, 100, 100))  # grey: hue, saturation and contrast leave it alone
    transform = TrainTransform(raw_pixels, flip=0.0, color_jitter=0.2)
    torch.manual_seed(0)
    values = [transform(image).image.mean().item() for _ in range(50)]
    assert 79 <= min(values) < 90 and 110 < max(values) <= 121


def test_jitter_turns_the_hue():
    image = Image.new("RGB", (4, 4), (200, 40, 40))  # green and blue stay equal under every change but that of hue
    transform = TrainTransform(raw_pixels, flip=0.0, color_jitter=0.4)
    torch.manual_seed(0)
    apart = [(pixels[1] - pixels[2]).mean().item() for pixels in (transform(image).image for _ in range(30))]
    assert min(apart) < -20 and max(apart) > 20


def test_blur_is_applied_as_often_as_asked():
    torch.manual_seed(0)
    plain = torch.rand(3, 6, 8)
    blur = _photometric(0.0, blur=0.3)
    blurred = sum(not torch.allclose(blur(plain), plain, atol=0.002) for _ in range(200))
    assert 35 <= blurred <= 85


def test_second_view_shows_the_same_pixels_in_other_colours():
    image, _, _ = joint(width=18, height=12)
    transform = TrainTransform(raw_pixels, crop=(8, 9), second_view=True)
    changes = []
    for seed in range(10):
        with seeded(seed):
            views = transform(image)
        assert views.view.shape == views.image.shape
        # Same place and same flip: the two views rise and fall together.
        together = torch.corrcoef(torch.stack([views.image.mean(0).flatten(), views.view.mean(0).flatten()]))[0, 1]
        assert together > 0.9
        changes.append((views.image - views.view).abs().mean().item())
    assert max(changes) > 10


def test_first_view_stays_plain_beside_a_second():
    image = joint(8, 6)[0]
    views = TrainTransform(raw_pixels, flip=0.0, second_view=True)(image)
    assert torch.equal(views.image, TrainTransform(raw_pixels, flip=0.0)(image).image)


def test_same_seed_same_sample():
    image, label, depth = joint(width=18, height=12)
    transform = TrainTransform(CAFFE_BGR, load_size=(9, 14), crop=(8, 8), color_jitter=0.4, second_view=True)

    def sample(seed):
        torch.rand(seed)  # whatever was drawn before
        with seeded(seed):
            return transform(image, label, depth)

    for seed in range(5):
        assert all(torch.equal(a, b) for a, b in zip(sample(seed), sample(seed)))
    assert not all(torch.equal(a, b) for a, b in zip(sample(1), sample(2)))
    again = pickle.loads(pickle.dumps(transform))
    with seeded(3):
        assert torch.equal(again(image, label, depth).image, sample(3).image)


def test_test_transform_leaves_the_label_at_its_own_size():
    image, label, depth = joint(width=18, height=12)
    views = EvalTransform(raw_pixels, size=(9, 5))(image, label, depth)
    assert views.image.shape == (3, 5, 9) and views.label.shape == (12, 18) and views.depth.shape == (12, 18)
    np.testing.assert_array_equal(views.label, np.asarray(label))
    views = EvalTransform(raw_pixels, size=(9, 5), label_size=(6, 4))(image, label, depth)
    np.testing.assert_array_equal(views.label, np.asarray(label.resize((6, 4), Image.NEAREST)))
    assert torch.equal(views.depth, torch.from_numpy(resize_depth(depth, (4, 6))))


@pytest.mark.parametrize("resample, mode", [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
def test_test_transform_resamples_as_named(resample, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8))
    views = EvalTransform(raw_pixels, size=(9, 5), resample=resample)(image)
    np.testing.assert_array_equal(views.image.permute(1, 2, 0), np.asarray(image.resize((9, 5), mode)))


@pytest.mark.parametrize("size, wanted", [((128, 64), (64, 32)), ((100, 60), (73, 41)), ((40, 30), (64, 64))])
def test_aliased_bilinear_is_opencv_s_exactly_at_half_the_size_and_else_to_a_grey_level(size, wanted):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = EvalTransform(lambda x: x.float(), wanted, "bilinear_aliased")(Image.fromarray(pixels)).image
    expected = cv2.resize(pixels, wanted, interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    difference = np.abs(image.numpy() - expected)
    assert difference.max() <= (0 if size == (2 * wanted[0], 2 * wanted[1]) else 1)
    smooth = EvalTransform(lambda x: x.float(), wanted, "bilinear")(Image.fromarray(pixels)).image
    assert wanted[0] > size[0] or np.abs(smooth.numpy() - expected).max() > 10


@pytest.mark.parametrize(
    "size, fitted",
    [((2048, 1024), (64, 32)), ((100, 100), (32, 32)), ((30, 60), (32, 64)), ((1280, 760), (54, 32)), ((999, 1), (64, 1))],
)
def test_an_image_that_keeps_its_shape_fits_into_the_size_either_way_round(size, fitted):
    image = EvalTransform(lambda x: x.float(), (64, 32), keep_ratio=True)(Image.new("RGB", size)).image
    assert tuple(image.shape) == (3, fitted[1], fitted[0])
