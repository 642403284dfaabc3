import os
from pathlib import Path

import numpy as np
import pytest
from layouts import save_ids, save_image

from dada.dataset import LABEL_SETS, CamVid, EvalTransform

PLAIN = EvalTransform(lambda image: image.float())
DATA = Path(os.environ.get("DADA_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "CamVid"
DUSK = [f"0001TP_{frame:06d}" for frame in range(6690, 8521, 30)]


@pytest.fixture
def camvid(tmp_path):
    """The names of SegNet's train/, thinned out by day; SegNet's are PNG, those of others JPEG."""
    day = ["0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_08640"]
    for number, name in enumerate([*day, *DUSK]):
        save_image(tmp_path / "train" / f"{name}.{'jpg' if number % 2 else 'png'}", number)
        save_ids(tmp_path / "trainannot" / f"{name}.png", np.arange(12 * 20).reshape(12, 20) % 12)
    return tmp_path


def names(camvid, split, **options):
    return [Path(item.name).stem for item in CamVid(camvid, split, transform=PLAIN, **options).items]


def test_day_and_dusk_divide_the_sequences(camvid):
    assert names(camvid, "day") == ["0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_08640"]
    dusk, held_out = names(camvid, "dusk", with_labels=False), names(camvid, "dusk_val")
    assert (len(dusk), len(held_out)) == (39, 17)
    assert {*dusk, *held_out} < set(DUSK) and not {*dusk} & {*held_out}
    assert sorted([*names(camvid, "train")]) == sorted([*names(camvid, "day"), *DUSK])


def test_no_image_of_the_test_has_a_neighbour_in_training(camvid):
    def frames(split):
        return np.array([int(name.split("_")[1]) for name in names(camvid, split)])

    apart = np.abs(frames("dusk")[:, None] - frames("dusk_val")[None])
    assert apart.min() == 4 * 30  # frames of a 30 Hz video


def test_the_drive_goes_on_in_test(camvid):
    for frame in range(8550, 8761, 30):  # SegNet's test/ begins where train/ ends, and holds daylight besides
        for name in (f"0001TP_{frame:06d}", "Seq05VD_f00000"):
            save_image(camvid / "test" / f"{name}.png", frame)
            save_ids(camvid / "testannot" / f"{name}.png", np.zeros((12, 20)))
    assert names(camvid, "dusk_test") == [f"0001TP_{frame:06d}" for frame in range(8640, 8761, 30)]
    assert int(names(camvid, "dusk_test")[0].split("_")[1]) - int(names(camvid, "dusk")[-1].split("_")[1]) == 4 * 30


def test_an_image_finds_its_label_whatever_its_format(camvid):
    dataset = CamVid(camvid, "train", transform=PLAIN)
    assert {Path(item.image).suffix for item in dataset.items} == {".jpg", ".png"}
    label = dataset[0].label
    assert label.flatten()[:12].tolist() == [*range(11), 255]
    assert dataset.classes is LABEL_SETS[11] and dataset.classes.names[10] == "bicyclist"


def test_the_lists_of_segnet_serve_for_jpeg_too(camvid, tmp_path):
    (tmp_path / "train.txt").write_text(
        "".join(f"/SegNet/CamVid/train/{n}.png /SegNet/CamVid/trainannot/{n}.png\n" for n in DUSK[:4])
    )
    assert names(camvid, "train", list_file=tmp_path / "{}.txt") == DUSK[:4]


def test_a_list_with_an_image_that_is_not_there_is_refused(camvid, tmp_path):
    (tmp_path / "train.txt").write_text(f"{DUSK[0]}.png\n0001TP_000000.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 2 CamVid images are missing: .*0001TP_000000.png"):
        names(camvid, "train", list_file=tmp_path / "{}.txt")


def test_an_unknown_split_is_answered_with_those_there_are(camvid):
    with pytest.raises(ValueError, match="no split 'night', only 'train', 'val', 'test', 'day', 'dusk', 'dusk_val', 'dusk_test'"):
        names(camvid, "night")
    with pytest.raises(FileNotFoundError, match="CamVid images for split 'test' not found"):
        names(camvid, "test")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no CamVid in {DATA}; DADA_TEST_DATA names another folder")
def test_camvid_as_downloaded():
    counts = {"train": 367, "val": 101, "day": 305, "dusk": 39, "dusk_val": 17}
    assert {split: len(CamVid(DATA, split, transform=PLAIN)) for split in counts} == counts
    dataset = CamVid(DATA, "dusk_val", transform=PLAIN)
    found = {int(t) for sample in dataset for t in np.unique(sample.label)}
    assert found == {*range(11), 255}  # no class is missing from the test
    assert dataset[0].image.shape == (3, 360, 480)
