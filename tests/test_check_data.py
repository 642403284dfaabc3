"""The check of a run's data: it names every broken file, stops at none, and says whether training would work."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_options

from dada.build import files_of
from dada.commands import data_problems as module
from dada.commands.check_data import check_data
from dada.commands.data_report import as_dict, report
from dada.config import cfg, cfg_from_dict, cfg_from_list, default_cfg
from dada.dataset.conventions import warn_of_conventions, warn_of_foreign_ids
from dada.dataset.synthia_release import guess_release
from dada.evaluation.evaluator import to_json


@pytest.fixture
def own_city(city, tmp_path):
    """A copy of the small city that a test may break; the cfg reads it."""
    copy = tmp_path / "city"
    shutil.copytree(city, copy)
    cfg_from_list(tiny_options(copy, tmp_path / "runs"))
    cfg_from_list(["TRAIN.DA_METHOD=MinEnt"])
    return copy


def domain(check, role):
    return next(d for d in check.domains if d.role == role)


def kinds(check, role):
    """Names of the files by kind of problem, of errors only."""
    found = {}
    for problem in domain(check, role).errors:
        found.setdefault(problem.kind, []).append(problem.file.rpartition("/")[2])
    return found


def test_a_sound_city_would_train_and_is_counted(own_city):
    check = check_data(cfg)
    assert check.trainable and check.testable and [d.role for d in check.domains] == ["source", "target", "test"]
    assert [(d.images, d.labels, d.checked) for d in check.domains] == [(4, 4, 4), (4, 0, 4), (2, 2, 2)]
    assert all(d.sizes == {(128, 64): d.images} for d in check.domains)
    by_hand = np.zeros(16, dtype=int)
    for path in sorted((own_city / "SYNTHIA/parsed_LABELS").iterdir()):
        by_hand[0] += (np.asarray(Image.open(path)) == 3).sum()  # SYNTHIA's road
    assert domain(check, "source").counts.sum(axis=0)[0] == by_hand[0] > 0
    assert check.overlap.both[0] == 1.0


def test_every_broken_file_is_named_with_its_kind_and_none_stops_the_check(own_city):
    synthia, cityscapes = own_city / "SYNTHIA", own_city / "Cityscapes"
    images = sorted((synthia / "RGB").iterdir())
    content = images[0].read_bytes()
    images[0].write_bytes(content[: len(content) // 2])
    images[1].write_bytes(b"")
    labels = sorted((synthia / "parsed_LABELS").iterdir())
    ids = np.array(Image.open(labels[2]))
    ids[0, 0] = 77
    Image.fromarray(ids).save(labels[2])
    Image.open(labels[3]).resize((64, 32), Image.Resampling.NEAREST).save(labels[3])
    target = sorted((cityscapes / "leftImg8bit/train").rglob("*.png"))
    target[-1].write_text("<html>404</html>")
    test = sorted((cityscapes / "gtFine/val").rglob("*labelIds.png"))
    Image.fromarray(np.dstack([np.zeros((64, 128, 2), np.uint8), np.ones((64, 128), np.uint8)])).save(test[0])

    check = check_data(cfg)
    assert kinds(check, "source") == {
        module.IMAGE: [images[0].name, images[1].name],
        module.IDS: [labels[2].name],
        module.SIZE: [labels[3].name],
    }
    assert kinds(check, "target") == {module.IMAGE: [target[-1].name]}
    assert kinds(check, "test") == {module.LABEL: [test[0].name]}
    assert not check.trainable and not check.testable
    text = report(check)
    assert f"error    source: unreadable image, 2 files: RGB/{images[0].name}, RGB/{images[1].name}" in text
    assert f"label ids outside the map, 1 file: parsed_LABELS/{labels[2].name}" in text and "label id 77" in text
    assert "is 64x32, its image" in text and text.endswith("training would fail; testing would fail")


def test_the_target_s_training_labels_are_not_opened(own_city):
    shutil.rmtree(own_city / "Cityscapes/gtFine/train")
    assert check_data(cfg).trainable


def test_a_broken_test_split_does_not_stop_training(own_city):
    shutil.rmtree(own_city / "Cityscapes/gtFine/val")
    check = check_data(cfg)
    assert check.trainable and not check.testable and check.overlap is None
    assert "error    test: dataset cannot be opened: Cityscapes labels for split 'val' not found" in report(check)


def test_labels_that_do_not_pair_do_not_keep_the_images_from_being_read(own_city):
    sorted((own_city / "SYNTHIA/parsed_LABELS").iterdir())[0].unlink()
    images = sorted((own_city / "SYNTHIA/RGB").iterdir())
    images[2].write_bytes(b"")
    check = check_data(cfg)
    assert kinds(check, "source") == {module.UNOPENED: ["SYNTHIA"], module.IMAGE: [images[2].name]}
    assert domain(check, "source").checked == 4 and not check.trainable
    text = report(check)
    assert "1 of 4 labels of SYNTHIA images are missing" in text and "unreadable image, 1 file" in text


def test_a_run_without_a_term_on_the_target_does_not_read_its_training_split(own_city):
    shutil.rmtree(own_city / "Cityscapes/leftImg8bit/train")
    assert not check_data(cfg).trainable
    cfg_from_list(["TRAIN.DA_METHOD=source_only"])
    check = check_data(cfg)
    assert check.trainable and [d.role for d in check.domains] == ["source", "test"]


def test_options_that_cannot_be_used_are_reported_beside_the_data(own_city):
    cfg_from_list(["TRAIN.DA_METHOD=nosuch"])
    check = check_data(cfg)
    assert not check.trainable and len(check.domains) == 3
    assert "error    options cannot be used: " in report(check) and "nosuch" in report(check)


def test_starting_weights_that_are_missing_are_named_last_and_are_no_fault_of_the_data(own_city, tmp_path):
    assert report(check_data(cfg)).endswith("\ntraining would work; testing would work")
    weights = tmp_path / "DeepLab_resnet_pretrained_imagenet.pth"
    cfg_from_list([f"TRAIN.RESTORE_FROM={weights}"])
    check = check_data(cfg)
    assert check.trainable and as_dict(check)["training_would_work"] and "does not exist" in as_dict(check)["missing_weights"]
    text = report(check)
    assert text.endswith(f"\ntraining would work once {weights} is there (TRAIN.RESTORE_FROM); testing would work")
    assert f"warning  starting weights: weights file {weights} does not exist." in text and "valeoai/ADVENT/releases" in text
    shutil.rmtree(own_city / "SYNTHIA")
    assert report(check_data(cfg)).endswith("training would fail; testing would work")
    weights.write_bytes(b"")
    for there in (weights, "imagenet", "random", ""):
        cfg_from_list([f"TRAIN.RESTORE_FROM={there}"])
        assert not check_data(cfg).no_weights


def test_depth_is_read_where_the_run_reads_it(own_city):
    depth = sorted((own_city / "SYNTHIA/Depth").iterdir())[1]
    depth.write_bytes(depth.read_bytes()[:100])
    assert check_data(cfg).trainable
    cfg_from_list(["USE_DEPTH=True"])
    check = check_data(cfg)
    assert kinds(check, "source") == {module.DEPTH: [depth.name]} and domain(check, "source").depths == 4


def test_a_label_without_a_trained_class_is_a_warning_and_a_class_in_no_label_an_error(own_city):
    for path in (own_city / "SYNTHIA/parsed_LABELS").iterdir():
        Image.fromarray(np.full((64, 128), 3 if path.stem.endswith("0") else 0, np.uint8)).save(path)
    check = check_data(cfg)
    assert not check.trainable and check_data(cfg, limit=2).trainable, "others may hold them"
    text = report(check)
    assert "warning  source: no trained class in the label, 3 files:" in text
    assert "75.0 % of label pixels ignored" in text
    assert "error    source: classes in no label: no label holds sidewalk, building, " in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("road", "sidewalk"))}
    # Pixels and images of the source, of the test split, then pairs with the class in the source alone, the test alone, both.
    assert rows["road"][:2] == ["100.000", "25.00"] and rows["road"][4:] == ["0.00", "75.00", "25.00"]
    assert rows["sidewalk"][:2] == ["0.000", "0.00"]


def test_a_limit_reads_evenly_spaced_samples_and_says_so(own_city):
    check = check_data(cfg, limit=2)
    assert [d.checked for d in check.domains] == [2, 2, 2] and "2 of them read" in report(check)
    names = sorted((own_city / "SYNTHIA/RGB").iterdir())
    names[0].write_bytes(b"")
    names[1].write_bytes(b"")
    assert kinds(check_data(cfg, limit=2), "source") == {module.IMAGE: [names[0].name]}


def test_loader_processes_find_what_one_process_finds(own_city):
    next((own_city / "SYNTHIA/RGB").iterdir()).write_bytes(b"broken")
    one, two = (as_dict(check_data(cfg, workers=workers)) for workers in (0, 2))
    assert one == two


def test_a_zip_archive_is_checked_in_place(own_city):
    labels = sorted((own_city / "SYNTHIA/parsed_LABELS").iterdir())
    labels[0].write_bytes(b"broken")
    packed = own_city / "SYNTHIA.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in (own_city / "SYNTHIA").rglob("*.png"):
            archive.write(path, path.relative_to(own_city / "SYNTHIA"))
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={packed}"])
    check = check_data(cfg)
    assert kinds(check, "source") == {module.LABEL: [labels[0].name]} and domain(check, "source").images == 4


def test_the_report_in_json_names_every_file_and_is_valid(own_city):
    for path in (own_city / "SYNTHIA/RGB").iterdir():
        path.write_bytes(b"")
    read = json.loads(to_json(as_dict(check_data(cfg))))
    source = read["domains"][0]
    assert not read["training_would_work"] and read["testing_would_work"]
    errors = [p for p in source["problems"] if p["error"]]
    assert len(errors) == 4 and {p["kind"] for p in errors} == {module.IMAGE.name}
    assert source["classes"]["road"]["share_of_images"] == 1.0
    assert set(read["overlap"]["classes"]["road"]) == {"source_only", "test_only", "both"}


# --- which archive of SYNTHIA ---------------------------------------------------------------------------------


def archive(root, names, size=(1280, 760)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if path.suffix == ".png" and size is not None:
            Image.new("L", size).save(path)
        else:
            path.touch()
    return root


@pytest.mark.parametrize(
    "names, size, name, reason",
    [
        (["RGB/0000000.png"], (1280, 760), "SYNTHIA-RAND-CITYSCAPES", "RGB/ holds 1 of its 9400 images"),
        (["RGB/0000000.png"], (960, 720), None, "0000000.png is 960x720, not 1280x760"),
        (["RGB/ap_000_02-11-2015_18-02-19_000157_0_Rand_10.png"], (960, 720), "SYNTHIA-RAND-CVPR16", "a name of that"),
        (["RGB/Stereo_Left/Omni_F/000000.png"], (1280, 760), "SYNTHIA-SEQS", "folders of cameras"),
        (["RGBLeft/0000000.png"], (1920, 1080), "SYNTHIA-SF", "RGBLeft"),
        (["RGB/frame1.png"], (1280, 760), None, "frame1.png, a name of none"),
        (["RGB/readme.txt"], None, None, "no PNG"),
        (["GT/LABELS/0000000.png"], (1280, 760), None, "no folder RGB/"),
        (["RGB/0000000.png"], None, "SYNTHIA-RAND-CITYSCAPES", "cannot be read"),
    ],
)
def test_look_alike_archives_are_told_apart_by_names_and_sizes(tmp_path, names, size, name, reason):
    release = guess_release(archive(tmp_path, names, size))
    assert release.name == name and reason in release.reason and not release.fits


def test_the_whole_archive_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("dada.dataset.synthia_release._IMAGES", 2)
    assert guess_release(archive(tmp_path, ["RGB/0000000.png", "RGB/0000001.png"])).fits


def test_another_archive_is_named_even_when_its_labels_are_not_there(own_city):
    shutil.rmtree(own_city / "SYNTHIA")
    archive(own_city / "SYNTHIA", ["RGB/ap_000_02-11-2015_18-02-19_000157_0_Rand_10.png", "GTTXT/a.txt"], (960, 720))
    text = report(check_data(cfg))
    assert "warning  source: unusual archive: " in text and "SYNTHIA looks like SYNTHIA-RAND-CVPR16: RGB/ holds ap_" in text
    assert "error    source: dataset cannot be opened: " in text


# ---- what files may be taken for by mistake


@pytest.mark.parametrize(
    ("dataset", "void", "kind"),
    [("SYNTHIA", 255, module.FOREIGN), ("SYNTHIA", 0, module.PERHAPS_FOREIGN), ("Cityscapes", 255, module.FOREIGN)],
)
def test_train_ids_under_the_names_of_original_labels_are_told_from_these(own_city, caplog, dataset, void, kind):
    role, pattern = ("source", "parsed_LABELS/*.png") if dataset == "SYNTHIA" else ("test", "gtFine/val/*/*labelIds.png")
    assert not any("numbering" in p.kind.name for d in check_data(cfg).domains for p in d.problems)
    for path in (own_city / dataset).glob(pattern):
        ids = np.arange(64 * 128).reshape(64, 128) % 20
        Image.fromarray(np.where(ids == 19, void, ids).astype(np.uint8)).save(path)
    found = [p for p in domain(check_data(cfg), role).problems if "numbering" in p.kind.name]
    assert [p.kind for p in found] == [kind] and f"{role == 'source' and 'SOURCE' or 'TARGET'}=Folder" in found[0].message
    warn_of_foreign_ids(files_of(cfg, role))
    assert "look like train ids of Cityscapes" in caplog.text


def test_labels_of_nothing_but_void_are_not_called_train_ids(own_city):
    for path in (own_city / "SYNTHIA/parsed_LABELS").iterdir():
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(path)
    assert [p.kind for p in domain(check_data(cfg), "source").errors] == [module.NOTHING]
    assert not any("numbering" in p.kind.name for p in domain(check_data(cfg), "source").problems)


def test_where_labels_are_missing_the_files_that_are_there_are_named(own_city):
    for path in (own_city / "Cityscapes/gtFine/val").rglob("*labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    message = domain(check_data(cfg), "test").problems[0].message
    assert "labels of Cityscapes images are missing" in message and "labelTrainIds.png" in message.split("holds")[1]


def own_masks(tmp_path, masks, images=None, names="images/{}.png", **options):
    """A folder with these masks as source, target and test, in a cfg."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for k, mask in enumerate(masks):
        (Image.fromarray(noise) if images is None else images[k]).save(tmp_path / names.format(k))
        (mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, np.uint8))).save(tmp_path / f"masks/{k}.png")
    folder = {"IMAGES": "images/*.*", "LABELS": "masks/*.*", **options}
    values = {"SOURCE": "Folder", "TARGET": "Folder", "CLASSES": {"NAMES": ["ground", "crack"]}, "NUM_WORKERS": 0}
    values.update({f"DATA_DIRECTORY_{role}": str(tmp_path) for role in ("SOURCE", "TARGET")})
    values.update({f"FOLDER_{role}": folder for role in ("SOURCE", "TARGET")})
    values["TRAIN"] = {"RESTORE_FROM": "random", "DA_METHOD": "MinEnt"}
    return cfg_from_dict(values, "test", default_cfg())


MASK = np.tile([0, 1, 1, 0], (8, 3))


def test_masks_of_0_and_255_fail_with_the_map_that_reads_them(tmp_path):
    check = check_data(own_masks(tmp_path, [MASK * 255, MASK * 255]))
    text = report(check)
    assert not check.trainable and "50.0 % of label pixels ignored" in text
    assert "set FOLDER_SOURCE.LABEL_MAP to {0: ground, 255: crack}" in text
    assert "set FOLDER_TARGET.LABEL_MAP to {0: ground, 255: crack}" in text and "no label holds crack" in text
    mapped = check_data(own_masks(tmp_path, [MASK * 255], LABEL_MAP={"0": "ground", "255": "crack"}))
    assert mapped.trainable and domain(mapped, "source").ignored == 0


@pytest.mark.parametrize("mask", [np.full((8, 12), 255), np.full((8, 12), 7)])
def test_a_source_without_a_labelled_pixel_fails_and_its_ids_are_named(tmp_path, mask):
    check = check_data(own_masks(tmp_path, [mask, mask], DEFAULT="ignore"))
    found = [p.message for p in domain(check, "source").errors]
    assert not check.trainable and found == [
        f"2 labels were read, and no pixel is of a trained class; they hold ids {mask[0, 0]}"
    ]


def test_palettes_that_differ_are_a_warning_where_an_index_that_occurs_has_several_colours(tmp_path):
    def paletted(colors):
        image = Image.fromarray(MASK.astype(np.uint8))
        image.putpalette(np.array(colors, np.uint8).tobytes())
        return image

    alike = [paletted([(9, 9, 9), (200, 0, 0), (1, 2, 3)]), paletted([(9, 9, 9), (200, 0, 0), (7, 7, 7)])]
    assert not domain(check_data(own_masks(tmp_path, alike)), "source").problems
    found = domain(check_data(own_masks(tmp_path, [*alike, paletted([(200, 0, 0), (9, 9, 9)])])), "source").problems
    assert [p.kind for p in found] == [module.PALETTES] and "FOLDER_SOURCE.LABEL_FORMAT to rgb" in found[0].message


def test_black_pictures_pages_and_photos_that_sizes_do_not_turn_are_named(tmp_path):
    noise = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 12, 3), dtype=np.uint8)) for k in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 3
    config = own_masks(tmp_path, [MASK] * 3, [*noise[:2], Image.new("RGB", (12, 8), (3, 3, 4))], names="images/{}.tif")
    noise[0].save(tmp_path / "images/0.tif", save_all=True, append_images=noise[1:])
    noise[1].save(tmp_path / "images/1.tif", exif=exif)
    found = {p.kind: p.file.rpartition("/")[2] for p in domain(check_data(config), "source").problems}
    assert found == {module.PAGES: "0.tif", module.TURNED: "1.tif", module.FLAT: "2.tif"}
    assert "1 stored turned (EXIF)" in report(check_data(config))


def test_pictures_with_several_whites_are_named_and_masks_beside_images_left_out(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (8, 12)).astype(np.uint16)
    patterns = {"IMAGES": "images/**/*.*", "LABELS": "images/masks/*.*"}
    config = own_masks(tmp_path, [MASK] * 2, [Image.fromarray(grey << 4), Image.fromarray(grey << 8)], **patterns)
    (tmp_path / "masks").rename(tmp_path / "images/masks")
    source = domain(check_data(config), "source")
    assert source.images == 2 and dict(source.whites) == {4095: 1, 65535: 1}
    assert {p.kind for p in source.problems} == {module.WHITES, module.LEFT_OUT}
    assert {p.kind for p in domain(check_data(config), "target").problems} == {module.WHITES, module.LEFT_OUT}


def test_training_and_tests_warn_where_pictures_of_a_folder_would_be_brightened_differently(tmp_path, caplog):
    grey = np.random.default_rng(0).integers(0, 256, (8, 12)).astype(np.uint16)
    twelve_bits = [Image.fromarray(grey << 4), Image.fromarray(grey << 2)]  # of the second, no number exceeds 1023
    config = own_masks(tmp_path, [MASK] * 2, twelve_bits)
    for role in ("source", "target"):
        caplog.clear()
        warn_of_conventions(files_of(config, role))
        assert f"taken for white, 1023 (1), 4095 (1): set FOLDER_{role.upper()}.WHITE" in caplog.text
    caplog.clear()
    alike = [own_masks(tmp_path, [MASK] * 2, twelve_bits, WHITE=4095), own_masks(tmp_path, [MASK] * 2, twelve_bits[:1] * 2)]
    eight_bits = own_masks(tmp_path, [MASK] * 2)
    for said in (*alike, eight_bits):
        warn_of_conventions(files_of(said, "source"))
    assert not caplog.text
