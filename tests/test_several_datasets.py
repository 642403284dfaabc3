"""Several sources and targets: each with its own options, drawn by share, as one side of a step; each target tested by itself."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dada.build import eval_loader, source_loader
from dada.commands.check_data import check_data
from dada.config import ConfigError, cfg, cfg_from_dict, cfg_from_file, cfg_from_list, each_dataset, plain_cfg, reset, save_cfg
from dada.dataset import StepSampler
from dada.dataset.joined import Joined, parts_of
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.loop import Training

TWO = {
    "SOURCE": ["SYNTHIA", "Folder"],
    "SOURCE_SHARE": [3, 1],
    "TRAIN": {"SET_SOURCE": ["all", "train"]},
    "FOLDER_SOURCE": [{}, {"IMAGES": "{split}/*.jpg", "LABELS": "{split}/*.png", "LABEL_MAP": {7: "road", 1: "car"}}],
}


@pytest.fixture
def two(city, tiny_cfg, tmp_path):
    """SYNTHIA's four images and three photographs, whose labels are road on the left (7) and car on the right (1)."""
    photos = tmp_path / "photos"
    (photos / "train").mkdir(parents=True)
    ids = np.repeat([[7] * 64 + [1] * 64], 64, axis=0).astype(np.uint8)
    for k in range(3):
        Image.fromarray(np.full((64, 128, 3), 80 * k, np.uint8)).save(photos / "train" / f"photo{k}.jpg")
        Image.fromarray(ids).save(photos / "train" / f"photo{k}.png")
    cfg_from_dict({**TWO, "DATA_DIRECTORY_SOURCE": [str(city / "SYNTHIA"), str(photos)]}, "test")
    return cfg


# --- options -------------------------------------------------------------------------------------------------


def test_each_source_has_its_own_values_and_what_is_no_list_is_that_of_all(two, city):
    first, second = each_dataset(two, "source")
    assert (first.SOURCE, first.TRAIN.SET_SOURCE, first.SOURCE_SHARE) == ("SYNTHIA", "all", 3)
    assert (second.SOURCE, second.TRAIN.SET_SOURCE, second.SOURCE_SHARE) == ("Folder", "train", 1)
    assert first.FOLDER_SOURCE.IMAGES == "{split}/images/**/*.*" and second.FOLDER_SOURCE.IMAGES == "{split}/*.jpg"
    assert first.FOLDER_SOURCE.LABEL_MAP == {} and second.FOLDER_SOURCE.LABEL_MAP == {"7": "road", "1": "car"}
    assert first.FOLDER_SOURCE.DEFAULT == second.FOLDER_SOURCE.DEFAULT == "error"
    assert first.TRAIN.MODEL == second.TRAIN.MODEL == two.TRAIN.MODEL
    assert two.SOURCE == ("SYNTHIA", "Folder") and two.TRAIN.SET_SOURCE == ("all", "train")  # untouched


def test_one_source_is_the_cfg_itself(tiny_cfg):
    assert each_dataset(tiny_cfg, "source")[0] is tiny_cfg
    cfg_from_list(["SOURCE=[SYNTHIA]"])
    assert [one.SOURCE for one in each_dataset(tiny_cfg, "source")] == ["SYNTHIA"]


def test_lists_are_read_back_from_a_saved_cfg_and_from_the_command_line(two, tmp_path):
    before = plain_cfg(two)
    save_cfg(two, tmp_path / "saved.yml")
    reset()
    assert plain_cfg(cfg_from_file(tmp_path / "saved.yml")) == before
    cfg_from_list(["SOURCE=[CamVid, CamVid]", "TRAIN.SET_SOURCE=[day, dusk]", "DATA_DIRECTORY_SOURCE=data/[1]"])
    assert cfg.SOURCE == ("CamVid", "CamVid") and cfg.TRAIN.SET_SOURCE == ("day", "dusk")
    assert cfg.DATA_DIRECTORY_SOURCE == "data/[1]"


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["SOURCE_SHARE=[1, 0]"], "SOURCE_SHARE: expected above 0, got 0"),
        (["SOURCE_SHARE=-2"], "SOURCE_SHARE: expected above 0, got -2"),
        (["SOURCE=[]"], "SOURCE: expected a str, or a list of those, one per source, got an empty list"),
        (["SOURCE=[CamVid, 3]"], "expected str, got int 3"),
        (["TARGET_SHARE=[2, 0]"], "TARGET_SHARE: expected above 0, got 0"),
        (["TARGET=[]"], "TARGET: expected a str, or a list of those, one per target, got an empty list"),
    ],
)
def test_shares_and_names_that_cannot_be_are_refused(tiny_cfg, pairs, message):
    with pytest.raises(ConfigError) as error:
        cfg_from_list(pairs)
    assert message in str(error.value)


@pytest.mark.parametrize("pairs", [["SOURCE_SHARE=[3, 1, 2]"], ["SOURCE=SYNTHIA"]])
def test_counts_that_do_not_match_are_told(two, pairs):
    cfg_from_list(pairs)
    with pytest.raises(ValueError, match=r"SOURCE names \d datasets?, but .*SOURCE_SHARE has \d.*a list with one for each"):
        source_loader(two, TORCHVISION_RGB, steps=1)


def test_a_fault_of_one_source_names_it(two, tmp_path):
    cfg_from_list([f"DATA_DIRECTORY_SOURCE=['{two.DATA_DIRECTORY_SOURCE[0]}', '{tmp_path / 'gone'}']"])
    with pytest.raises(FileNotFoundError, match=r"source 2 of 2, Folder: .*gone"):
        source_loader(two, TORCHVISION_RGB, steps=1)


# --- what is drawn ---------------------------------------------------------------------------------------------


def drawn(**options):
    return list(StepSampler(12, 3, seed=5, parts=[(5, 3.0), (7, 1.0)], **options))


def test_parts_are_drawn_by_their_shares_and_each_in_epochs_of_its_own():
    draws = [draw.index for batch in drawn(stop_step=400) for draw in batch]
    for stretch in (draws[:40], draws[600:640], draws):  # not only in the long run
        assert sum(index < 5 for index in stretch) / len(stretch) == pytest.approx(0.75, abs=0.06)
    for part in ([i for i in draws if i < 5], [i for i in draws if i >= 5]):
        size = len(set(part))
        epochs = [part[k : k + size] for k in range(0, len(part) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1


def test_draws_depend_on_the_step_alone_and_processes_draw_disjoint_parts_of_it():
    whole = drawn(stop_step=40)
    assert drawn(start_step=17, stop_step=40) == whole[17:]
    shared = [drawn(stop_step=40, slots=range(*slots)) for slots in ((0, 1), (1, 3))]
    assert [a + b for a, b in zip(*shared)] == whole


def test_classes_are_drawn_within_each_part():
    asked = []

    def draw(*parts):
        asked.append(parts)
        return 1, 9

    batch = next(iter(StepSampler(12, 40, seed=5, stop_step=1, parts=[(5, 1.0), (7, 1.0)], by_class=[draw, draw])))
    assert Counter(d.index for d in batch) == {1: 20, 6: 20} and {d.wanted for d in batch} == {9}
    assert {stream for _, stream, *_ in asked} == {"source 0", "source 1"}


def test_a_batch_holds_images_of_both_with_the_same_classes(two):
    loader = source_loader(two, TORCHVISION_RGB, steps=8)
    assert isinstance(loader.dataset, Joined) and [len(part) for part in parts_of(loader.dataset)] == [4, 3]
    road, car = (loader.dataset.classes.names.index(name) for name in ("road", "car"))
    batches = list(loader)
    names = [name for batch in batches for name in batch.name]
    assert Counter(name.startswith("train/photo") for name in names) == {False: 12, True: 4}
    for batch in batches:
        for name, label in zip(batch.name, batch.label):
            if name.startswith("train/photo"):
                assert set(label.unique().tolist()) <= {road, car}
    again = list(source_loader(two, TORCHVISION_RGB, steps=8, start_step=3))
    assert all(torch.equal(a.image, b.image) and a.name == b.name for a, b in zip(batches[3:], again))


def test_joined_samples_are_those_of_their_part_in_a_loader_process_too(two):
    joined = eval_loader(two, TORCHVISION_RGB, "source").dataset
    sent = pickle.loads(pickle.dumps(joined))
    for index in range(len(joined)):
        part, own = (joined.parts[0], index) if index < 4 else (joined.parts[1], index - 4)
        assert sent[index].name == part[own].name and torch.equal(sent[index].image, part[own].image)


def test_sources_of_other_classes_are_refused(two):
    first, second = parts_of(source_loader(two, TORCHVISION_RGB, steps=1).dataset)
    second.classes = replace(second.classes, names=("street", *second.classes.names[1:]))
    with pytest.raises(ValueError, match=r"of SYNTHIA are road, .*, those of source folder street"):
        Joined([first, second])


def test_a_run_names_both_and_associates_batches_of_both(two):
    cfg_from_list(["EXP_NAME=", "CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=4", "TRAIN.BATCH_SIZE_TARGET=4"])
    run = run_of(two)
    assert run.name.startswith("SYNTHIA+Folder2Cityscapes")
    training = Training(two, run)
    assert training._images[:2] == ["SYNTHIA all, 4 labelled images", "source folder train, 3 labelled images"]
    _, found = next(training.iterations())
    photos = [name.startswith("train/photo") for name in found.step.source.name]
    assert any(photos) and not all(photos)
    assert found.notes.cycles["fass"].closed.shape[0] == 4 and found.values["loss_fass"] > 0


def test_check_data_looks_at_each_source_and_lets_one_teach_what_the_other_lacks(two, tmp_path):
    check = check_data(two)
    first, second = (domain for domain in check.domains if domain.role == "source")
    assert (first.name, first.images, second.name, second.images) == ("SYNTHIA", 4, "Folder", 3)
    lacking = [
        problem.message for domain in (first, second) for problem in domain.problems if problem.kind.name == "classes in no label"
    ]
    absent = [n for n, seen in zip(first.classes, first.counts.sum(axis=0) + second.counts.sum(axis=0)) if not seen]
    assert len(lacking) == bool(absent) and all(name in lacking[0] for name in absent)
    assert "car" not in "".join(lacking) and "terrain" not in second.classes
    assert check.overlap is not None and second.counts.sum() == 3 * 64 * 128
