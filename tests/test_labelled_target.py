"""TARGET_LABELLED: a few target images with labels are trained on, and never tested."""

import logging
import os
import shutil

import pytest
import torch
from tiny import TinyNetwork, random_batch

from dada.build import eval_loader, labelled_loader, labelled_target
from dada.commands.check_data import check_data
from dada.config import cfg, cfg_from_dict, cfg_from_list
from dada.domain_adaptation.losses import cross_entropy, upsample
from dada.domain_adaptation.objectives import build_objective, target_cross_entropy
from dada.domain_adaptation.step import Step
from dada.model.batch_norm import SOURCE, TARGET
from dada.model.outputs import Outputs
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.idle import idle_parts
from dada.training.loop import Training

TRAIN = [f"{town}/{town}_000000_000000_leftImg8bit.png" for town in ("adlerhain", "birkenau", "dornfeld", "eschenburg")]
VAL = "grauhafen/grauhafen_000000_000000_leftImg8bit.png"
CPU = torch.device("cpu")


def names(value: str) -> list[str]:
    cfg_from_list([f"TARGET_LABELLED={value}"])
    return [item.name for item in labelled_target(cfg).items]


@pytest.fixture
def town(city, tmp_path, tiny_cfg):
    """A copy of the target in which two of four images have a label."""
    root = tmp_path / "town"
    shutil.copytree(city / "Cityscapes", root)
    for name in (TRAIN[0], TRAIN[2]):
        os.remove(root / "gtFine" / "train" / name.replace("leftImg8bit", "gtFine_labelIds"))
    cfg_from_list([f"DATA_DIRECTORY_TARGET={root}"])
    return root


# --- which images ------------------------------------------------------------------------------------------------


def test_a_number_takes_images_evenly_or_by_the_seed_where_more_hold_the_fewer(tiny_cfg):
    assert names("2") == [TRAIN[0], TRAIN[3]] and names("3") == [TRAIN[0], TRAIN[2], TRAIN[3]]
    chosen = {}
    for seed in range(6):
        cfg_from_list([f"TRAIN.RANDOM_SEED={seed}"])
        one, two, three = (names(f"random {count}") for count in (1, 2, 3))
        assert set(one) < set(two) < set(three) < set(TRAIN) and two == sorted(two) == names("random 2")
        chosen[seed] = tuple(two)
    assert len(set(chosen.values())) > 2
    cfg_from_dict({"TARGET_LABELLED": 2}, "a YAML file")
    assert cfg.TARGET_LABELLED == "2"


def test_only_images_with_a_label_file_count(town):
    assert names("all") == names("2") == [TRAIN[1], TRAIN[3]]
    with pytest.raises(ValueError, match="TARGET_LABELLED is 3, but expected 1 to 2: so many images of Cityscapes train"):
        names("3")
    with pytest.raises(ValueError, match="TARGET_LABELLED is 0"):
        names("0")


def test_in_a_folder_of_pictures_those_with_a_mask_count_too(town):
    cfg_from_dict(
        {
            "TARGET": "Folder",
            "FOLDER_TARGET": {
                "IMAGES": "leftImg8bit/{split}/**/*_leftImg8bit.png",
                "LABELS": "gtFine/{split}/**/*_gtFine_labelIds.png",
                "LABEL_MAP": "cityscapes",
            },
        },
        "test",
    )
    assert [os.path.basename(name) for name in names("all")] == [os.path.basename(TRAIN[k]) for k in (1, 3)]
    listed = town / "few.txt"
    listed.write_text(f"leftImg8bit/train/{TRAIN[1]}\n")
    assert names(listed) == [f"leftImg8bit/train/{TRAIN[1]}"]


def test_a_list_names_images_and_each_needs_a_label(town):
    listed = town / "few.txt"
    listed.write_text(f"{TRAIN[3]}\n{TRAIN[1]}\n")
    assert names(listed) == [TRAIN[3], TRAIN[1]]
    listed.write_text(f"{TRAIN[1]}\n{TRAIN[0]}\n")
    with pytest.raises(FileNotFoundError, match=r"TARGET_LABELLED .*few.txt: 1 of 2 labels .*adlerhain"):
        names(listed)
    listed.write_text("gone/gone_leftImg8bit.png\n")
    with pytest.raises(FileNotFoundError, match="1 of 1 Cityscapes images are missing: .*gone_leftImg8bit.png"):
        names(listed)
    with pytest.raises(FileNotFoundError, match="list file .*none.txt not found. Correct TARGET_LABELLED"):
        names(town / "none.txt")


# --- never in a test -----------------------------------------------------------------------------------------------


def test_an_image_that_is_tested_is_refused_by_training_and_by_the_test(tiny_cfg, tmp_path):
    listed = tmp_path / "few.txt"
    listed.write_text(f"{TRAIN[1]}\nleftImg8bit/val/{VAL}\n")
    cfg_from_list([f"TARGET_LABELLED={listed}"])
    for use in (lambda: Training(cfg, run_of(cfg)), lambda: eval_loader(cfg, TORCHVISION_RGB)):
        with pytest.raises(
            ValueError, match=r"1 of the 2 images of TARGET_LABELLED are tested, too \(split 'val'\): .*grauhafen"
        ):
            use()
    problems = [p.message for d in check_data(cfg).domains if d.role in ("labelled", "test") for p in d.errors]
    assert len([text for text in problems if "are tested, too" in text]) == 2


def test_evaluations_while_training_count_as_tests(tiny_cfg):
    cfg_from_list(["TARGET_LABELLED=2", "TRAIN.EVAL_EVERY=1", "TRAIN.EVAL_SPLIT=target:train"])
    with pytest.raises(ValueError, match="tested, too .split 'train'"):
        labelled_loader(cfg, TORCHVISION_RGB, steps=1)
    cfg_from_list(["TRAIN.EVAL_SPLIT=source:train"])
    labelled_loader(cfg, TORCHVISION_RGB, steps=1)


def test_a_test_without_the_list_says_what_it_cannot_know(tiny_cfg, caplog):
    cfg_from_list(["TARGET_LABELLED=/gone/few.txt"])
    caplog.set_level(logging.WARNING)
    assert len(eval_loader(cfg, TORCHVISION_RGB).dataset) == 2
    assert "were trained on with their labels is not known" in caplog.text and "/gone/few.txt" in caplog.text


# --- the term ---------------------------------------------------------------------------------------------------------


def test_the_term_is_the_cross_entropy_of_the_labelled_images_and_no_other():
    network = TinyNetwork(5)
    source, target, labelled = random_batch(seed=1), random_batch(seed=2), random_batch(3, seed=3)
    labelled.label[:, :10] = 255
    step = Step(network, source, target, labelled=labelled)
    loss = target_cross_entropy(step)
    logits = upsample(network(labelled.image).logits, labelled.label.shape[-2:], True)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labelled.label, ignore_index=255))
    torch.testing.assert_close(loss, cross_entropy(logits, labelled.label))
    assert step.target.label is None
    with pytest.raises(ValueError, match="needs labelled images of the target"):
        target_cross_entropy(Step(network, source, target))


def test_labelled_images_pass_through_the_batch_norms_of_the_target():
    seen = []

    class Watching(Step):
        def forward(self, image, domain, **options):
            seen.append((len(image), domain))
            return Outputs(torch.zeros(len(image), 5, 8, 10, requires_grad=True), None)

    cfg_from_list(["TARGET_LABELLED=all", "NUM_CLASSES=5", "TRAIN.LAMBDA_SEG_TARGET=0.5", "TRAIN.DOMAIN_BN=True"])
    objective = build_objective(cfg, CPU)  # which adapts, so that these are trained
    assert objective.uses_labelled and not objective.uses_target
    losses = objective(Watching(None, random_batch(), None, labelled=random_batch(3)), 0)
    assert seen == [(2, SOURCE), (3, TARGET)]
    assert losses.terms["loss_seg_trg"][0] == 0.5 and losses.terms["loss_seg_trg"][1].item() == pytest.approx(
        torch.tensor(5.0).log().item()
    )


def test_without_images_or_weight_there_is_no_term(tiny_cfg):
    assert not build_objective(cfg, CPU).uses_labelled
    cfg_from_list(["TARGET_LABELLED=2", "TRAIN.LAMBDA_SEG_TARGET=0"])
    objective = build_objective(cfg, CPU)
    assert not objective.uses_labelled
    assert "TARGET_LABELLED is not read, since TRAIN.LAMBDA_SEG_TARGET is 0" in idle_parts(cfg, objective)


def test_a_run_learns_from_them_in_a_line_of_their_own(tiny_cfg):
    cfg_from_list(["TARGET_LABELLED=3", "TRAIN.BATCH_SIZE_LABELLED=2", "CONTRASTIVE_LEARNING=True", "DATA_TRANSFORM.FLIP=0.5"])
    training = Training(cfg, run_of(cfg))
    assert training._images[-1] == "3 of the target with labels (TARGET_LABELLED 3)"
    assert training._data["labelled images"].startswith("3 images")
    found = [iteration for _, iteration in training.iterations()]
    assert all(set(one.step.labelled.name) < {TRAIN[0], TRAIN[2], TRAIN[3]} for one in found)
    assert found[0].step.labelled.name != found[1].step.labelled.name
    assert all(one.values["loss_seg_trg"] > 0 and one.step.target.label is None for one in found)


def test_labels_without_a_trained_class_are_told_of(tiny_cfg, town, caplog):
    from PIL import Image

    for name in (TRAIN[1], TRAIN[3]):
        path = town / "gtFine" / "train" / name.replace("leftImg8bit", "gtFine_labelIds")
        Image.new("L", Image.open(path).size, 0).save(path)
    cfg_from_list(["TARGET_LABELLED=all"])
    (labelled,) = (domain for domain in check_data(cfg).domains if domain.role == "labelled")
    assert labelled.labels == 2 and any("no pixel is of a trained class" in problem.message for problem in labelled.errors)
    caplog.set_level(logging.WARNING)
    list(Training(cfg, run_of(cfg)).iterations())
    assert "not one pixel of TARGET_LABELLED was labelled with a trained class in 2 steps" in caplog.text
