"""The toy city: pictures whose labels and depth are exact, in the folders that the loaders read."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dada.dataset.toycity import classes as c
from dada.dataset.toycity import parse_size, write_city
from dada.dataset.toycity import write as write_module
from dada.dataset.toycity.camera import Camera
from dada.dataset.toycity.canvas import Canvas
from dada.dataset.toycity.look import LOOKS
from dada.dataset.toycity.scene import draw_scene
from dada.dataset.toycity.street import draw_ground, make_street
from dada.label_sets import LABEL_SETS, cityscapes_id_map, synthia_id_map

LOOK_NAMES = ("source", "target")
SMALL = (128, 64)
CLASS_NAMES = LABEL_SETS[16].names
TRAIN_IDS = np.uint8([*range(16), 255, 255, 255, 255, 255])
SCRIPT = Path(__file__).parent.parent / "scripts" / "make_toycity.py"


def scene(seed, look, size):
    """Picture, train ids and depth."""
    drawn = draw_scene(seed, look, size)
    return drawn.rgb, TRAIN_IDS[drawn.ids], drawn.depth


@pytest.fixture(scope="module")
def scenes():
    return {look: [scene((7, i), look, SMALL) for i in range(24)] for look in LOOK_NAMES}


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return write_city(tmp_path_factory.mktemp("toycity") / "city", source=4, target=6, size=SMALL, seed=3)


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("look", LOOK_NAMES)
def test_the_same_seed_draws_the_same_scene_and_another_seed_another(look):
    first, again, other = scene(5, look, SMALL), scene(5, look, SMALL), scene(6, look, SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("look", LOOK_NAMES)
@pytest.mark.parametrize("size", [(64, 32), (131, 67), (97, 160)])
def test_any_size_is_drawn_with_shapes_and_types_as_documented(look, size):
    rgb, label, depth = scene(1, look, size)
    assert (rgb.shape, rgb.dtype) == ((size[1], size[0], 3), np.uint8)
    assert (label.shape, label.dtype) == ((size[1], size[0]), np.uint8)
    assert (depth.shape, depth.dtype) == ((size[1], size[0]), np.float32)


@pytest.mark.parametrize("look", LOOK_NAMES)
def test_labels_are_the_16_classes_or_void(scenes, look):
    found = np.unique(np.concatenate([label.ravel() for _, label, _ in scenes[look]]))
    assert set(found.tolist()) <= {*range(16), 255}
    assert 255 in found


@pytest.mark.parametrize("look", LOOK_NAMES)
def test_every_class_is_in_a_reasonable_share_of_scenes(scenes, look):
    share = {name: np.mean([(label == k).sum() >= 4 for _, label, _ in scenes[look]]) for k, name in enumerate(CLASS_NAMES)}
    assert min(share.values()) >= 0.1, share
    assert min(share[name] for name in ("road", "sidewalk", "building", "vegetation", "pole")) >= 0.9, share


def test_the_target_shows_more_cars_and_fewer_people_than_the_source(scenes):
    def share(look, name):
        return np.mean([(label == CLASS_NAMES.index(name)).mean() for _, label, _ in scenes[look]])

    assert share("target", "car") > share("source", "car")
    for name in ("person", "rider", "motorcycle"):
        assert share("target", name) < share("source", name)


@pytest.mark.parametrize("look", LOOK_NAMES)
def test_depth_is_infinite_in_the_sky_and_only_there(scenes, look):
    for _, label, depth in scenes[look]:
        inside = slice(2, -2) if look == "target" else slice(None)  # the outer columns are void, sky or not
        label, depth = label[:, inside], depth[:, inside]
        assert np.array_equal(np.isinf(depth), label == c.SKY)
        assert depth.min() > 0


def test_road_depth_is_the_height_of_the_camera_over_the_slope_of_the_ray():
    camera = Camera((160, 80), 0.9, x=1.0, height=1.5)
    canvas = Canvas(camera)
    look = LOOKS["source"]
    rng = np.random.default_rng(0)
    draw_ground(canvas, look, make_street(rng, look), rng)
    row, column = np.nonzero(canvas.label == c.ROAD)
    by_hand = 1.5 * (0.9 * 160) / (row + 0.5 - 40)
    np.testing.assert_allclose(canvas.depth[row, column], by_hand, rtol=1e-5)
    assert len(row) > 1000


def test_tilted_camera_sees_points_of_the_ground_at_the_depth_it_projects_them_to():
    camera = Camera((160, 80), 0.8, x=-2.0, height=4.0, pitch=0.2, yaw=0.15, roll=0.05)
    canvas = Canvas(camera)
    look = LOOKS["source"]
    rng = np.random.default_rng(0)
    draw_ground(canvas, look, make_street(rng, look), rng)
    points = np.array([[0.0, 10.0, 0.0], [1.0, 14.0, 0.0], [-3.0, 12.0, 0.0]])
    seen = camera.to_camera(points)
    for (u, v), depth in zip(camera.to_pixels(seen), seen[:, 2], strict=True):
        around = canvas.depth[int(np.floor(v)) : int(np.floor(v)) + 2, int(np.floor(u)) : int(np.floor(u)) + 2]
        assert around.min() <= depth <= around.max()


@pytest.mark.parametrize("look", LOOK_NAMES)
def test_in_every_scene_road_depth_is_one_plane_and_grows_toward_the_horizon(scenes, look):
    for _, label, depth in scenes[look]:
        row, column = np.nonzero(label == c.ROAD)
        # 1 / depth of a plane is affine in the pixel position.
        plane = np.stack([row, column, np.ones(len(row))], 1)
        inverse = 1 / depth[row, column].astype(float)
        fitted = plane @ np.linalg.lstsq(plane, inverse, rcond=None)[0]
        np.testing.assert_allclose(fitted, inverse, atol=1e-5)
        by_row = [depth[r][label[r] == c.ROAD].mean() for r in np.unique(row)[:: max(1, len(np.unique(row)) // 6)]]
        assert all(np.diff(by_row) < 0)


def test_colour_label_and_depth_change_on_exactly_the_same_pixels():
    canvas = Canvas(Camera((100, 60), 1.0, height=1.0))
    canvas.current_instance = 9
    square = np.array([[-1.0, 7.0, 0.2], [1.3, 7.0, 0.4], [1.1, 7.5, 2.0], [-0.7, 7.2, 1.6]])
    canvas.polygon(square, (1.0, 0.5, 0.25), c.CAR)
    drawn = canvas.label == c.CAR
    assert 50 < drawn.sum() < 3000
    assert np.array_equal(drawn, canvas.rgb[..., 0] == 1.0)
    assert np.array_equal(drawn, np.isfinite(canvas.depth))
    assert np.array_equal(drawn, canvas.instance == 9)
    assert canvas.depth[drawn].min() > 6.9 and canvas.depth[drawn].max() < 7.6


def test_what_is_nearer_hides_what_is_farther_in_any_order():
    def draw(order):
        canvas = Canvas(Camera((100, 60), 1.0, height=1.0))
        for y, label in order:
            corners = np.array([[-1.0, y, 0.0], [1.0, y, 0.0], [1.0, y, 2.0], [-1.0, y, 2.0]])
            canvas.polygon(corners, (label / 20,) * 3, label)
        return canvas

    one, two = draw([(5, c.BUS), (9, c.CAR)]), draw([(9, c.CAR), (5, c.BUS)])
    assert np.array_equal(one.label, two.label) and np.array_equal(one.rgb, two.rgb)
    assert set(np.unique(one.label)) == {c.SKY, c.BUS}


@pytest.mark.parametrize("look", LOOK_NAMES)
def test_colours_stay_informative_in_both_looks(scenes, look):
    def mean_rgb(name):
        k = CLASS_NAMES.index(name)
        return np.concatenate([rgb[label == k] for rgb, label, _ in scenes[look]]).mean(0)

    red, green, blue = mean_rgb("vegetation")
    assert green > red and green > blue
    assert mean_rgb("sky").mean() > 1.3 * mean_rgb("road").mean()
    assert np.ptp(mean_rgb("road")) < 25


def test_the_looks_differ_in_appearance(scenes):
    def saturation(look):
        pixels = np.concatenate([rgb.reshape(-1, 3) for rgb, _, _ in scenes[look]])
        return np.ptp(pixels.astype(int), axis=1).mean()

    assert saturation("source") > 1.5 * saturation("target")


def test_the_city_has_the_folders_of_both_datasets(city):
    assert sorted(files(city / "SYNTHIA")) == sorted(
        f"{folder}/{i:07d}.png" for folder in ("RGB", "GT/LABELS", "parsed_LABELS", "Depth") for i in range(4)
    )
    images = sorted(p.relative_to(city / "Cityscapes/leftImg8bit") for p in city.rglob("*_leftImg8bit.png"))
    labels = sorted(p.relative_to(city / "Cityscapes/gtFine") for p in city.rglob("*_gtFine_labelIds.png"))
    assert [str(p).replace("_leftImg8bit", "_gtFine_labelIds") for p in images] == [str(p) for p in labels]
    assert [p.parts[0] for p in images] == ["train"] * 4 + ["val"] * 2
    for _, town, name in (p.parts for p in images):
        assert name.startswith(f"{town}_") and name.split("_")[2] == "000000"
    towns = {split: {p.parts[1] for p in images if p.parts[0] == split} for split in ("train", "val")}
    assert not towns["train"] & towns["val"]


def test_no_scene_of_val_is_in_train(city):
    hashes = [files(city / "Cityscapes/leftImg8bit" / split).values() for split in ("train", "val")]
    assert not set(hashes[0]) & set(hashes[1])
    assert len(set(hashes[0])) == 4 and len(set(hashes[1])) == 2


def test_raw_synthia_labels_are_16_bit_with_the_class_in_the_first_channel(city):
    for path in sorted((city / "SYNTHIA/GT/LABELS").iterdir()):
        header = path.read_bytes()[:26]
        assert header[24] == 16 and header[25] == 2  # bits a sample, colour type RGB
        raw = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGR2RGB)
        parsed = cv2.imread(str(city / "SYNTHIA/parsed_LABELS" / path.name), cv2.IMREAD_UNCHANGED)
        assert raw.dtype == np.uint16 and parsed.dtype == np.uint8 and parsed.ndim == 2
        assert np.array_equal(raw[..., 0], parsed)
        assert raw[..., 1].max() > 3 and not raw[..., 2].any()
        assert set(np.unique(parsed).tolist()) <= set(range(23))


def test_files_hold_what_scene_returns(city):
    rgb, label, depth = scene((3, 0, 2), "source", SMALL)
    read = {
        folder: cv2.imread(str(city / "SYNTHIA" / folder / "0000002.png"), cv2.IMREAD_UNCHANGED)
        for folder in ("RGB", "parsed_LABELS", "Depth")
    }
    assert np.array_equal(read["RGB"][..., ::-1], rgb)
    assert np.array_equal(synthia_id_map(16)[read["parsed_LABELS"]], label)
    assert read["Depth"].dtype == np.uint16
    solid = np.isfinite(depth)
    assert np.abs(read["Depth"][solid] / 100 - depth[solid]).max() <= 0.0051
    assert (read["Depth"][~solid] == 65535).all()

    _, label, _ = scene((3, 2, 1), "target", SMALL)
    (name,) = city.glob("Cityscapes/gtFine/val/heidestadt/*_000000_000000_gtFine_labelIds.png")
    ids = cv2.imread(str(name), cv2.IMREAD_UNCHANGED)
    assert ids.dtype == np.uint8 and ids.max() <= 33
    assert {1, 3} <= set(np.unique(ids).tolist())  # own bonnet, out of the region of interest
    assert np.array_equal(cityscapes_id_map(16)[ids], label)


def test_every_id_of_the_scene_has_a_number_in_both_datasets():
    for table, id_map in ((c.SYNTHIA_IDS, synthia_id_map(16)), (c.CITYSCAPES_IDS, cityscapes_id_map(16))):
        assert np.array_equal(id_map[table], TRAIN_IDS)


@pytest.fixture
def imported_once(monkeypatch):
    """Workers begin as copies of a process that has imported what they draw with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([write_module.__name__])
    monkeypatch.setattr(write_module.multiprocessing, "get_context", lambda method: context)


@pytest.mark.parametrize("start", ["imported_once", pytest.param(None, marks=pytest.mark.slow)])
def test_the_bytes_do_not_depend_on_the_number_of_workers(city, tmp_path, request, start):
    if start:
        request.getfixturevalue(start)
    other = write_city(tmp_path / "other", source=4, target=6, size=SMALL, seed=3, workers=2)
    assert files(other) == files(city)


def test_a_smaller_city_is_part_of_a_larger_one(city, tmp_path):
    small = files(write_city(tmp_path / "small", source=1, target=2, val=1, size=SMALL, seed=3))
    small.pop("toycity.json")
    assert len(small) == 8 and small.items() <= files(city).items()


def test_a_complete_city_is_kept_and_an_incomplete_one_reported(tmp_path):
    def write(**changes):
        return write_city(tmp_path / "city", **{"source": 2, "target": 0, "size": (64, 32), **changes})

    write()
    before = files(tmp_path / "city")
    victim = tmp_path / "city/SYNTHIA/Depth/0000001.png"
    stamp = victim.stat().st_mtime_ns
    write()
    assert victim.stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match=r"another toy city \(seed 0 instead of 1\).*--overwrite"):
        write(seed=1)
    victim.unlink()
    with pytest.raises(FileExistsError, match=r"1 of its files are missing, first .*0000001\.png.*--overwrite"):
        write()
    write(overwrite=True)
    assert files(tmp_path / "city") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"not empty and holds thesis\.tex.*choose another --out"):
        write_city(tmp_path / "data", source=1, target=0, size=(64, 32), overwrite=overwrite)
    (tmp_path / "data/thesis.tex").unlink()
    (tmp_path / "data/SYNTHIA").mkdir()  # the real one
    with pytest.raises(FileExistsError, match=r"no readable toycity\.json"):
        write_city(tmp_path / "data", source=1, target=0, size=(64, 32), overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["data"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch, there_before):
    out = tmp_path / "city"
    if there_before:
        write_city(out, source=1, target=0, size=(64, 32))
    before = files(tmp_path)
    real = write_module._write_png

    def full_disk(path, image):
        if path.name == "0000001.png":
            raise OSError("No space left on device")
        real(path, image)

    monkeypatch.setattr(write_module, "_write_png", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_city(out, source=3, target=0, size=(64, 32), overwrite=there_before)
    assert files(tmp_path) == before
    assert os.listdir(tmp_path) == (["city"] if there_before else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": -1}, "source is -1, expected 0 or more"),
        ({"target": -2, "val": 0}, "target is -2, expected 0 or more"),
        ({"val": -1}, "val is -1"),
        ({"target": 3, "val": 4}, "val is 4, expected at most target, 3"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0, expected 1 or more"),
        ({"size": (63, 32)}, "size is 63x32, expected WIDTHxHEIGHT of at least 64x32"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_city(tmp_path / "city", **{"source": 1, "target": 1, **arguments})
    assert os.listdir(tmp_path) == []


def test_a_city_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    city = write_city(tmp_path / "city", source=1, target=0, size=(64, 32))
    before, rename = files(city), Path.rename

    def full_disk(path, target):
        if ".partial-" in path.name:
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_city(city, source=2, target=0, size=(64, 32), overwrite=True)
    assert files(city) == before and [path.name for path in tmp_path.iterdir()] == ["city"]


def test_sizes_are_read_as_width_by_height():
    assert parse_size("512x256") == (512, 256)
    for text in ("512", "512*256", "x256", "-64x32", "64x32x3", ""):
        with pytest.raises(ValueError, match="expected WIDTHxHEIGHT in pixels such as 512x256"):
            parse_size(text)


def test_the_script_runs_from_any_folder_and_records_what_it_made(tmp_path, monkeypatch, run_script):
    arguments = [
        "--out",
        "city",
        "--source",
        "1",
        "--target",
        "1",
        "--val",
        "1",
        "--size",
        "65x33",
        "--seed",
        "4",
        "--workers",
        "1",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(SCRIPT), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--overwrite" in done.stdout, done.stderr
    monkeypatch.chdir(tmp_path)
    run_script("make_toycity.py", *arguments)
    record = json.loads((tmp_path / "city/toycity.json").read_text())["toycity"]
    assert record.items() >= {"source": 1, "target": 1, "val": 1, "size": [65, 33], "seed": 4}.items()
    assert len(list((tmp_path / "city").rglob("*.png"))) == 6


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "big", "size is 'big', expected WIDTHxHEIGHT in pixels such as 512x256"),
        ("--size", "32x32", "size is 32x32, expected WIDTHxHEIGHT of at least 64x32 pixels"),
        ("--source", "-5", "source is -5, expected 0 or more"),
    ],
)
def test_the_script_ends_with_one_line_for_a_bad_option(tmp_path, run_script, option, value, message):
    with pytest.raises(SystemExit) as ended:
        run_script("make_toycity.py", "--out", tmp_path / "city", f"{option}={value}")
    assert ended.value.code == f"error: {message}"  # text, so the exit status is 1
    assert os.listdir(tmp_path) == []


def test_a_link_to_an_empty_folder_is_filled_and_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "city").symlink_to(tmp_path / "disk")
    write_city(tmp_path / "city", source=1, target=0, size=(64, 32))
    assert (tmp_path / "city").is_symlink()
    assert (tmp_path / "disk/SYNTHIA/RGB/0000000.png").is_file()
