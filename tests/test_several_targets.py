"""Several targets: drawn by share without a label, each tested by itself, and what takes one target alone says so."""

import json
import logging
import shlex
import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_NETWORK

from dada.build import eval_loaders, eval_transform, evaluated_splits, labelled_loader, labelled_target, target_loader
from dada.cli import main
from dada.cli.adapt import fill_cfg
from dada.commands.check_data import check_data
from dada.commands.data_report import report
from dada.commands.pack_dataset import pack
from dada.commands.suggest import suggest
from dada.config import cfg, cfg_from_dict, cfg_from_list, each_dataset, names_apart, plain_cfg, reset
from dada.dataset import image_files, storage
from dada.dataset.joined import parts_of
from dada.evaluation.reports import read_report
from dada.evaluation.tester import evaluate_run
from dada.model import build_model
from dada.normalization import TORCHVISION_RGB
from dada.publishing.release_file import write_release
from dada.report.groups import group_runs
from dada.report.run_records import find_runs
from dada.runs import run_of, save_snapshot
from dada.segmenter import Segmenter
from dada.training.adabn import statistics_loader
from dada.training.loop import Training


@pytest.fixture
def two(city, tiny_cfg, tmp_path):
    """The city's four images, and three photographs; both have two labelled test images. Of four images three are photographs."""
    photos = tmp_path / "photos"
    ids = np.repeat([[7] * 64 + [1] * 64], 64, axis=0).astype(np.uint8)
    for k, split in enumerate(["train", "train", "train", "val", "val"]):
        (photos / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 128, 3), 50 * k, np.uint8)).save(photos / split / f"photo{k}.png")
        Image.fromarray(ids).save(photos / split / f"photo{k}_mask.png")
    options = {"IMAGES": "{split}/photo?.png", "LABELS": "{split}/photo?_mask.png", "LABEL_MAP": {7: "road", 1: "car"}}
    several = {"TARGET": ["Cityscapes", "Folder"], "TARGET_SHARE": [1, 3], "FOLDER_TARGET": [{}, options]}
    cfg_from_dict({**several, "DATA_DIRECTORY_TARGET": [str(city / "Cityscapes"), str(photos)]}, "test")
    return cfg


def is_photo(name: str) -> bool:
    return Path(name).name.startswith("photo")


@pytest.fixture
def snapshot(two):
    """The last snapshot of a run that was never trained."""
    torch.manual_seed(0)
    return save_snapshot(run_of(two).snapshots, build_model(TINY_NETWORK, 16), 2, plain_cfg(two))


# --- training -------------------------------------------------------------------------------------------------


def test_images_of_all_targets_are_drawn_by_share_and_no_label_is_opened(two, monkeypatch):
    monkeypatch.setattr(image_files, "read_label_ids", None)
    batches = list(target_loader(two, TORCHVISION_RGB, steps=8))
    names = [name for batch in batches for name in batch.name]
    assert Counter(map(is_photo, names)) == {True: 12, False: 4} and len(set(names)) == 7
    assert all(batch.label is None for batch in batches)
    again = list(target_loader(two, TORCHVISION_RGB, steps=8, start_step=3))
    assert all(torch.equal(a.image, b.image) and a.name == b.name for a, b in zip(batches[3:], again))


def test_a_run_associates_each_target_with_the_source_and_takes_statistics_of_both(two):
    cfg_from_list(["EXP_NAME=", "CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=4", "TRAIN.BATCH_SIZE_TARGET=4"])
    run = run_of(two)
    assert run.name.startswith("SYNTHIA2Cityscapes+Folder")
    training = Training(two, run)
    assert training._images[1:] == ["Cityscapes train, 4 images without labels", "target folder train, 3 images without labels"]
    steps = [found for _, found in training.iterations()]
    assert {is_photo(name) for found in steps for name in found.step.target.name} == {True, False}
    found = steps[0]
    assert found.notes.cycles["fass"].closed.shape[0] == 4 and found.values["loss_fass"] > 0
    names = [name for batch in statistics_loader(two, training.trainer.network, 8) for name in batch.name]
    assert Counter(map(is_photo, names)) == {True: 6, False: 2}


def test_labelled_images_are_chosen_in_each_target_and_drawn_by_share(two):
    cfg_from_list(["TARGET_LABELLED=[random 2, 1]", "TRAIN.BATCH_SIZE_LABELLED=2"])
    assert [len(part) for part in parts_of(labelled_target(two))] == [2, 1]
    names = [name for batch in labelled_loader(two, TORCHVISION_RGB, steps=8) for name in batch.name]
    assert 11 <= sum(map(is_photo, names)) <= 13 and len(names) == 16 and len(set(names)) == 3
    cfg_from_list(["TARGET_LABELLED=['', 3]"])
    assert all(is_photo(item.name) for item in labelled_target(two).items) and len(labelled_target(two)) == 3
    training = Training(two, run_of(two))
    assert training._images[-1] == "3 of the target with labels (TARGET_LABELLED none+3)"
    cfg_from_list(["TARGET_LABELLED=4"])
    with pytest.raises(ValueError, match="target 2 of 2, Folder: TARGET_LABELLED is 4, but expected 1 to 3"):
        labelled_target(two)
    cfg_from_list(["TARGET_LABELLED=['', '']"])
    with pytest.raises(ValueError, match="no image of any target"):
        labelled_loader(two, TORCHVISION_RGB, steps=1)


def test_a_copy_of_a_test_image_of_any_target_is_no_labelled_image(two, tmp_path, city):
    tested = next((city / "Cityscapes/leftImg8bit/val").glob("*/*.png"))
    shutil.copy(tested, tmp_path / "photos/train/photo1.png")
    cfg_from_list(["TARGET_LABELLED=['', all]"])
    for use in (lambda: labelled_loader(two, TORCHVISION_RGB, steps=1), lambda: eval_loaders(two, TORCHVISION_RGB)):
        with pytest.raises(ValueError, match=rf"1 of the 3 images .* tested, too .*photo1.png \(a copy of {tested}\)"):
            use()
    assert any("are tested, too" in problem.message for problem in check_data(two).problems)


def test_copies_are_told_by_content_in_folders_and_archives(tmp_path):
    (tmp_path / "a").mkdir()
    for name, content in {"one": b"12345", "other": b"54321", "longer": b"123456"}.items():
        (tmp_path / "a" / name).write_bytes(content)
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "a")
    a, b = (lambda name: str(tmp_path / "a" / name)), (lambda name: str(tmp_path / "b.zip" / name))
    assert storage.same_files([a("one"), a("other")], [b("longer"), b("one")]) == {a("one"): b("one")}
    assert storage.same_files([b("other")], [a("one"), a("other")]) == {b("other"): a("other")}
    assert storage.same_files([a("one")], [a("../a/one")]) == {a("one"): a("one")}
    assert storage.same_files([a("one")], [a("other"), b("longer")]) == {}


# --- the test -------------------------------------------------------------------------------------------------


def test_each_target_is_scored_as_it_would_be_alone_and_the_mean_is_the_headline(two, snapshot, capsys):
    (found,) = evaluate_run(two, run_of(two)).values()
    path = snapshot.with_name("test_model_2.json")
    told, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert list(told["datasets"]) == ["Cityscapes", "Folder"] and told["protocol"]["TARGET"] == ["Cityscapes", "Folder"]
    assert "Cityscapes" in printed and "Folder" in printed and "mean" in printed
    for one, alone in zip(each_dataset(two, "target"), told["datasets"].values()):
        evaluate_run(one, run_of(one))
        report = json.loads(path.read_text())
        assert "datasets" not in report and {key: report[key] for key in alone} == alone
    both = list(told["datasets"].values())
    assert told["mIoU"]["16"] == pytest.approx(np.mean([one["mIoU"]["16"] for one in both]), abs=1e-3) == 100 * found.miou
    assert (np.array(both[0]["confusion"]) + np.array(both[1]["confusion"])).tolist() == told["confusion"]
    for name, value in told["IoU"].items():
        there = [one["IoU"][name] for one in both if one["IoU"][name] is not None]
        assert value == (pytest.approx(np.mean(there), abs=1e-3) if there else None)


def test_reports_releases_and_pages_name_each_target(two, snapshot, tmp_path):
    evaluate_run(two, run_of(two))
    read = read_report(snapshot.with_name("test_model_2.json"))
    assert list(read.datasets) == ["Cityscapes", "Folder"]
    assert read.means["16"] == pytest.approx(np.mean(list(read.datasets.values())), abs=1e-3)
    (group,) = group_runs(find_runs([snapshot.parent]))
    assert group.score("mIoU on Folder").mean == read.datasets["Folder"]
    card = write_release(two, snapshot, tmp_path / "model.safetensors")["model_card"]
    assert "On Cityscapes+Folder, split `val`" in card and "| class | Cityscapes | Folder | mean |" in card
    assert "Cityscapes, split `train` and Folder, split `train`" in card
    (row,) = (line for line in card.splitlines() if line.startswith("| **mIoU, ") and "16 classes" in line)
    assert row.endswith(" | ".join(f"{v:.2f}" for v in (*read.datasets.values(), read.means["16"])) + " |")


def test_evaluations_in_training_choose_by_the_mean(two, caplog):
    caplog.set_level(logging.INFO)
    cfg_from_list(["TRAIN.MAX_ITERS=1", "TRAIN.EVAL_EVERY=1", "TRAIN.EVAL_SPLIT=target:val"])
    training = Training(two, run_of(two))
    list(training.iterations())
    found = training.validate(1, lambda: False)
    assert list(found.parts) == ["Cityscapes", "Folder"]
    assert found.miou == pytest.approx(np.mean([part.miou for part in found.parts.values()]))
    assert torch.load(run_of(two).snapshots / "model_best.pth", weights_only=True)["chosen"]["mIoU"] == found.miou


def test_evaluations_in_training_read_the_split_that_is_named_for_each_target(two):
    def sizes(splits):
        cfg_from_list(["TRAIN.MAX_ITERS=1", "TRAIN.EVAL_EVERY=1", f"TRAIN.EVAL_SPLIT={splits}"])
        return [len(loader.dataset) for loader in eval_loaders(two, TORCHVISION_RGB, *evaluated_splits(two)).values()]

    assert sizes("target:val") == [2, 2] and sizes("target:val,train") == [2, 3] and sizes("source:all") == [4]
    for splits in ("target:val,train,val", "source:all,all"):
        cfg_from_list([f"TRAIN.EVAL_SPLIT={splits}"])
        with pytest.raises(ValueError, match=f"'{splits}', which names . splits, but .* names . dataset.*: give one split"):
            Training(two, run_of(two))
    # Labels that are learnt measure nothing, whichever target they are of.
    cfg_from_list(["TARGET_LABELLED=['', 1]", "TRAIN.EVAL_SPLIT=target:val,train"])
    with pytest.raises(ValueError, match="1 of the 1 images of TARGET_LABELLED are tested, too .split 'train'.: .*photo"):
        labelled_loader(two, TORCHVISION_RGB, steps=1)


@pytest.mark.parametrize(
    "pairs, names",
    [
        (["TARGET=[CamVid, IDD]"], ["CamVid", "IDD"]),
        (["TARGET=[ACDC, ACDC]", "TEST.SET_TARGET=[fog, night]"], ["ACDC fog", "ACDC night"]),
        (["TARGET=[Folder, Folder]", "DATA_DIRECTORY_TARGET=[data/A, data/B]"], ["Folder A", "Folder B"]),
        (["TARGET=[Folder, Folder]", "FOLDER_TARGET.IMAGES=[a/*, b/*]"], ["Folder 1", "Folder 2"]),
        (["TARGET=CamVid"], ["CamVid"]),
    ],
)
def test_targets_are_told_apart_by_the_shortest_name_that_does(pairs, names):
    assert names_apart(cfg_from_list(pairs), "target") == names


# --- commands -------------------------------------------------------------------------------------------------


def test_check_data_numbers_them_and_names_the_one_at_fault(two, tmp_path):
    check = check_data(two)
    assert check.trainable and check.testable and check.overlap is not None
    assert [(d.who, d.images) for d in check.domains if d.role == "test"] == [("test 1", 2), ("test 2", 2)]
    (tmp_path / "photos/val/photo4_mask.png").write_bytes(b"no picture")
    text = report(check_data(two))
    assert (
        "error    test 2: unreadable label, 1 file: " in text and "error    test 1" not in text and "testing would fail" in text
    )
    cfg_from_list(["TARGET_SHARE=[1, 2, 3]"])
    (problem,) = check_data(two).problems
    assert "TARGET names 2 datasets, but TARGET_SHARE has 3" in problem.message


def flags_of_next(printed: str) -> list[str]:
    """What `next: dada train ...` sets, of what a command has printed."""
    (line,) = (line for line in printed.splitlines() if line.startswith("next:"))
    return shlex.split(line.partition("--set ")[2])


def test_each_target_is_packed_into_a_folder_of_its_own(two, snapshot, tmp_path, capsys):
    asked = ["pack-dataset", "--cfg", str(snapshot), "--role", "target", "--out", str(tmp_path / "packed"), "--workers", "0"]
    expected = [(batch.name, batch.image) for batch in target_loader(two, TORCHVISION_RGB, steps=4)]
    reset()
    main(asked)
    printed = capsys.readouterr().out
    assert "Cityscapes train: 4 images" in printed and "Folder val: 2 images" in printed
    cfg_from_list(flags_of_next(printed))
    assert list(cfg.DATA_DIRECTORY_TARGET) == [str(tmp_path / "packed" / name) for name in ("Cityscapes", "Folder")]
    packed = [(batch.name, batch.image) for batch in target_loader(cfg, TORCHVISION_RGB, steps=4)]
    assert [a for a, _ in packed] == [b for b, _ in expected] and all(torch.equal(a[1], b[1]) for a, b in zip(packed, expected))
    # Nothing is packed before all can be.
    shutil.rmtree(tmp_path / "packed" / "Cityscapes")
    reset()
    with pytest.raises(SystemExit, match="target 2 of 2, Folder: .*packed/Folder holds a packed copy"):
        main(asked)
    assert not (tmp_path / "packed" / "Cityscapes").exists()
    with pytest.raises(ValueError, match="TARGET names 2 datasets: pack each of them by itself"):
        pack(two, "target", tmp_path / "one")


def test_images_to_label_are_suggested_of_each_target(two, snapshot, tmp_path, capsys):
    def suggested(out, *flags):
        reset()
        main(["suggest", "--checkpoint", str(snapshot), "--count", "1", "--region", "9", "--out", str(out), *flags])
        lists = [out.with_name(f"{out.stem}_{name}.txt") for name in ("Cityscapes", "Folder")]
        assert all(path.with_suffix(".html").is_file() for path in lists) and not out.exists()
        return lists, [[row for row in path.read_text().splitlines() if not row.startswith("#")] for path in lists]

    lists, (city, photos) = suggested(tmp_path / "next.txt")
    assert len(city) == len(photos) == 1 and is_photo(photos[0]) and not is_photo(city[0])
    cfg_from_list(flags_of_next(capsys.readouterr().out))
    assert [len(part) for part in parts_of(labelled_target(cfg))] == [1, 1]
    _, again = suggested(tmp_path / "again.txt", "--exclude", *map(str, lists))
    assert [len(set(rows)) for rows in again] == [2, 2] and [rows[0] for rows in again] == [city[0], photos[0]]
    _, again = suggested(tmp_path / "third.txt", "--exclude", "", str(lists[1]))
    assert [len(set(rows)) for rows in again] == [1, 2]
    with pytest.raises(SystemExit, match="--exclude names 1 list, but TARGET names 2 datasets: give a list for each"):
        suggested(tmp_path / "fourth.txt", "--exclude", str(lists[0]))
    with pytest.raises(ValueError, match="TARGET names 2 datasets: .* of one at a time"):
        suggest(two, snapshot, tmp_path / "next.txt", tmp_path / "next.html")


def test_photographs_of_ones_own_stand_in_for_all_targets(two, snapshot, tmp_path):
    reset()
    folder = tmp_path / "photos" / "train"
    fill_cfg(Namespace(cfg=None, set=[], checkpoint=str(snapshot), images=str(folder), iterations=None))
    assert [one.DATA_DIRECTORY_TARGET for one in each_dataset(cfg, "target")] == [str(folder)]
    assert len(target_loader(cfg, TORCHVISION_RGB, steps=1).dataset) == 6  # masks, too, are pictures


def test_a_network_predicts_photographs_as_the_target_of_many_shapes_is_read(two, snapshot):
    assert eval_transform(two, TORCHVISION_RGB).pad
    assert [eval_transform(one, TORCHVISION_RGB).pad for one in each_dataset(two, "target")] == [False, True]
    wide = Segmenter.from_checkpoint(snapshot, options=["FOLDER_TARGET.WHITE=[0, 4095]"])
    assert wide.white == 4095
    assert wide.predict(np.zeros((40, 90, 3), np.uint8)).ids.shape == (40, 90)
    options = ["TARGET=[Folder, Folder]", "FOLDER_TARGET.WHITE=[1023, 4095]"]
    with pytest.raises(ValueError, match="1023.0, 4095.0.* one FOLDER_TARGET.WHITE"):
        _ = Segmenter.from_checkpoint(snapshot, options=options).white
