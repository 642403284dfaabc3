"""The switches of the LEGACY section: on, the published behaviour; off, the corrected one."""

import copy
import json

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, golden_cases
from PIL import Image
from tiny import TinyNetwork
from torch import nn

from dada import build
from dada.build import build_network, source_loader, target_loader
from dada.config import cfg, cfg_from_list, plain_cfg
from dada.dataset import IGNORE_LABEL, LabelSet, TrainTransform
from dada.dataset.plca_numbering import number_as_plca, plca_order
from dada.domain_adaptation.objectives import build_objective
from dada.evaluation.tester import evaluate_run as run_test
from dada.label_sets import cityscapes_id_map, label_set, synthia_id_map
from dada.model import build_model
from dada.normalization import CAFFE_BGR
from dada.runs import run_of, save_snapshot
from dada.training.loop import train
from dada.training.repeating_sgd import RepeatingSGD, times_listed
from dada.training.trainer import build_optimizer

INDEX = json.loads((GOLDEN / "models_index.json").read_text())
NETWORKS = {  # case of the golden files: name of the network, options
    "advent_deeplab_multi": ("DeepLabv2", {"multi_level": True, "bn_policy": "frozen_affine"}),
    "advent_deeplab_single": ("DeepLabv2", {"bn_policy": "frozen_affine"}),
    "dada_deeplab_depth": ("DeepLabv2_depth", {"bn_policy": "frozen_affine"}),
    "fork_deeplab_resnet18": ("resnet-18_undilated", {}),
}


# --- DUPLICATE_STEPS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NETWORKS)
def test_every_parameter_is_listed_as_often_as_the_published_code_lists_it(case):
    name, options = NETWORKS[case]
    with torch.device("meta"):
        network = build_model(name, INDEX[case]["num_classes"], **options)
    listed = times_listed(network)
    own = dict(network.named_parameters())
    checked = 0
    for entry in INDEX[case]["entries"]:
        if entry.get("times_listed"):
            key = entry["key"].replace("layer5.", "layer6.") if case.startswith("fork") else entry["key"]
            assert listed[own[key]] == entry["times_listed"], key
            checked += 1
    assert checked > 50


def visits(times: int, weight: np.ndarray, gradients: list[np.ndarray], lr: float, momentum: float, decay: float):
    """SGD of PyTorch 0.4 to 1.2 on a parameter that its list holds `times` times, written out."""
    buffer = np.zeros_like(weight)
    for gradient in gradients:
        gradient = gradient.copy()
        for _ in range(times):
            gradient += decay * weight
            buffer = momentum * buffer + gradient
            weight = weight - lr * buffer
    return weight


@pytest.mark.parametrize("times", [1, 3, 4])
def test_repeated_visits_are_those_of_the_published_sgd(times):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), [rng.normal(size=5) for _ in range(4)]
    weight = nn.Parameter(torch.tensor(start))
    optimizer = RepeatingSGD([{"params": [weight]}], {weight: times}, lr=0.1, momentum=0.9, weight_decay=0.05)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    expected = visits(times, start, gradients, 0.1, 0.9, 0.05)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12)


def test_a_single_visit_is_torchs_sgd_and_their_states_are_interchangeable():
    torch.manual_seed(0)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(one.state_dict())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    ours = RepeatingSGD([{"params": list(one.parameters())}], dict.fromkeys(one.parameters(), 1), **options)
    torchs = torch.optim.SGD(other.parameters(), **options)
    for step in range(4):
        if step == 2:
            torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
        for network, optimizer in ((one, ours), (other, torchs)):
            optimizer.zero_grad()
            network(torch.full((2, 4), 0.1 * step)).square().sum().backward()
            optimizer.step()
    for a, b in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("switch, steps", [(False, (1, 1, 1)), (True, (1, 3, 4))])
def test_the_switch_makes_blocks_move_three_times_and_shortcuts_four_times(switch, steps):
    cfg_from_list(["TRAIN.MODEL=resnet-18", "TRAIN.MOMENTUM=0", "TRAIN.WEIGHT_DECAY=0", "TRAIN.LEARNING_RATE=0.25"])
    cfg.LEGACY.DUPLICATE_STEPS = switch
    network = build_network(cfg, weights="")
    optimizer = build_optimizer(network, cfg)
    weights = [network.conv1.weight, network.layer1[0].conv1.weight, network.layer2[0].downsample[0].weight]
    before = [w.detach().clone() for w in weights]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for weight, start, times in zip(weights, before, steps):
        torch.testing.assert_close(weight.detach(), start - 0.25 * times)


def test_a_run_with_duplicate_steps_resumes_exactly(tiny_cfg):
    cfg_from_list(["LEGACY.DUPLICATE_STEPS=True", "TRAIN.LEARNING_RATE=1e-5", "TRAIN.SAVE_PRED_EVERY=1"])
    whole = train(cfg, run_of(cfg, "whole")).state_dict()
    cfg.TRAIN.EARLY_STOP = 1
    train(cfg, run_of(cfg, "stopped"))
    cfg.TRAIN.EARLY_STOP = 0
    resumed = train(cfg, run_of(cfg, "stopped"), resume="auto").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_duplicate_steps_of_another_optimizer_are_refused():
    cfg_from_list(["LEGACY.DUPLICATE_STEPS=True", "TRAIN.OPTIMIZER=AdamW"])
    with pytest.raises(ValueError, match="LEGACY.DUPLICATE_STEPS needs SGD, but TRAIN.OPTIMIZER is 'AdamW'"):
        build_optimizer(TinyNetwork(2), cfg)


# --- SQUASHING_RESIZE ---------------------------------------------------------------------------------------


def picture(width: int, height: int) -> tuple[Image.Image, Image.Image, np.ndarray]:
    rng = np.random.default_rng(3)
    rgb = Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))
    label = Image.fromarray(rng.integers(16, size=(height, width), dtype=np.uint8))
    return rgb, label, rng.random((height, width), dtype=np.float32)


@pytest.mark.parametrize("size, wanted", [((128, 76), (128, 76)), ((128, 64), (64, 32)), ((64, 32), (96, 48))])
def test_an_image_of_the_wanted_shape_is_covered_as_it_is_resized(size, wanted):
    options = {"flip": 0.5, "color_jitter": 0.3, "second_view": True}
    for seed in range(4):
        torch.manual_seed(seed)
        covered = TrainTransform(CAFFE_BGR, cover=wanted, **options)(*picture(*size))
        torch.manual_seed(seed)
        resized = TrainTransform(CAFFE_BGR, resize=wanted, **options)(*picture(*size))
        assert all(torch.equal(a, b) for a, b in zip(covered, resized))


@pytest.mark.parametrize("size, wanted, between", [((100, 50), (40, 40), (80, 40)), ((50, 100), (60, 30), (60, 120))])
def test_an_image_of_another_shape_keeps_it_and_is_cropped_at_a_random_place(size, wanted, between):
    whole = TrainTransform(CAFFE_BGR, resize=between, flip=0.0)(*picture(*size))
    found = set()
    for seed in range(6):
        torch.manual_seed(seed)
        got = TrainTransform(CAFFE_BGR, cover=wanted, flip=0.0)(*picture(*size))
        assert got.image.shape[1:] == got.label.shape == got.depth.shape == wanted[::-1]
        places = [
            (top, left)
            for top in range(between[1] - wanted[1] + 1)
            for left in range(between[0] - wanted[0] + 1)
            if torch.equal(whole.image[:, top : top + wanted[1], left : left + wanted[0]], got.image)
        ]
        (top, left) = places[0]
        assert torch.equal(whole.label[top : top + wanted[1], left : left + wanted[0]], got.label)
        assert torch.equal(whole.depth[top : top + wanted[1], left : left + wanted[0]], got.depth)
        found.add(places[0])
    assert len(found) > 2


@pytest.mark.parametrize("switch", [False, True])
def test_the_switch_squashes_training_images_and_only_those_of_another_shape_show_it(switch, tiny_cfg):
    cfg_from_list(
        [
            "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=False",
            "TRAIN.INPUT_SIZE_SOURCE=[64, 32]",
            "TRAIN.INPUT_SIZE_TARGET=[32, 32]",
            f"LEGACY.SQUASHING_RESIZE={switch}",
        ]
    )
    source, target = (loader(cfg, CAFFE_BGR, 1).dataset for loader in (source_loader, target_loader))
    for dataset, (width, height), fits in ((source, (64, 32), True), (target, (32, 32), False)):
        squashed = Image.open(dataset.items[0].image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        expected = CAFFE_BGR(torch.from_numpy(np.array(squashed)).permute(2, 0, 1))
        assert torch.equal(dataset[0].image, expected) == (fits or switch)
        assert dataset[0].image.shape == (3, height, width)


# --- class maps and orders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", [False, True])
def test_the_map_of_synthia_to_7_classes_has_the_published_gaps_or_none(switch, tiny_cfg):
    cfg_from_list(["NUM_CLASSES=7", f"LEGACY.SYNTHIA_7_MAP={switch}"])
    used = source_loader(cfg, CAFFE_BGR, 1).dataset.id_map
    case = golden_cases("synthia_labels.npz", "same_size")[0]
    assert np.array_equal(used[case.arrays["ids"]], case.arrays["label7"]) == switch
    gaps = np.flatnonzero((used == IGNORE_LABEL) & (synthia_id_map(7) != IGNORE_LABEL))
    assert gaps.tolist() == ([12, 13, 16, 17, 18, 19, 20, 21] if switch else [])


def published_ids(case) -> np.ndarray:
    """PLCA's train ids; it hands the licence plate's id through, which is no class."""
    ids = case.arrays["train_ids"]
    return np.where(ids < len(case.settings["class_order"]), ids, IGNORE_LABEL)


def test_numbering_as_plca_is_the_published_map(tiny_cfg):
    datasets = {"SYNTHIA": source_loader, "Cityscapes": target_loader}
    cases = {case.name: case for case in golden_cases("plca_data.npz", "labels_SYNTHIA2Cityscapes")}
    assert len(cases) == 2
    for name, loader in datasets.items():
        case = cases[f"labels_SYNTHIA2Cityscapes_{name}"]
        cfg.LEGACY.PLCA_CLASS_ORDER = True
        dataset = loader(cfg, CAFFE_BGR, 1).dataset
        assert np.array_equal(dataset.id_map[case.arrays["ids"]], published_ids(case))
        assert dataset.classes.names[:4] == ("sky", "building", "road", "sidewalk")
        cfg.LEGACY.PLCA_CLASS_ORDER = False
        assert not np.array_equal(loader(cfg, CAFFE_BGR, 1).dataset.id_map, dataset.id_map)


def test_the_19_classes_in_plcas_order_have_the_published_map_and_their_own_colours():
    case = golden_cases("plca_data.npz", "labels_GTAV2Cityscapes_Cityscapes")[0]
    ordered = plca_order(label_set(19))

    class Dataset:
        classes, id_map, num_classes = label_set(19), cityscapes_id_map(19), 19

    number_as_plca(Dataset)
    assert np.array_equal(Dataset.id_map[case.arrays["ids"]], published_ids(case))
    colours = dict(zip(label_set(19).names, label_set(19).palette.tolist()))
    assert dict(zip(ordered.names, ordered.palette.tolist())) == colours


def test_plcas_order_of_other_classes_is_refused(tiny_cfg):
    cfg_from_list(["NUM_CLASSES=13", "LEGACY.PLCA_CLASS_ORDER=True"])
    with pytest.raises(ValueError, match="defined for 16 and 19 classes of Cityscapes, but the 13 classes are road, "):
        source_loader(cfg, CAFFE_BGR, 1)
    with pytest.raises(ValueError, match="the 16 classes are a, b, "):  # as many, but others
        plca_order(LabelSet(tuple("abcdefghijklmnop"), np.zeros((16, 3))))


def published_plca(num_classes: int) -> dict:
    """A ResNet-18 with a bias-free head under PLCA's names, its classifier in PLCA's order."""
    state = build_model("resnet-18", num_classes, head_bias=False).state_dict()
    head = "layer6.conv2d_list."
    names = {k: f"classifier.0.convs.{k[len(head)]}.0.weight" if k.startswith(head) else f"backbone.{k}" for k in state}
    # Large weights, so that different classes win in different places.
    return {names[k]: 30 * v if k.startswith(head) else v for k, v in state.items()}


def test_weights_of_plca_give_the_same_iou_by_name_in_either_order(tiny_cfg, tmp_path, capsys):
    torch.save({"weights": published_plca(16)}, tmp_path / "plca.weights")
    cfg_from_list(["TRAIN.MODEL=resnet-18", "TRAIN.HEAD_BIAS=False", f"TEST.RESTORE_FROM=[{tmp_path / 'plca.weights'}]"])
    reports = []
    for switch in (False, True):
        cfg.LEGACY.PLCA_CLASS_ORDER = switch
        reports.append(list(run_test(cfg, run_of(cfg)).values())[-1].as_dict())
    ours, plcas = reports
    assert list(plcas["IoU"]) != list(ours["IoU"]) and plcas["IoU"] == ours["IoU"] and plcas["mIoU"] == ours["mIoU"]
    assert len({value for value in ours["IoU"].values() if value}) > 1, "a network that sees one class proves nothing"


def test_a_network_in_plcas_order_is_plcas_and_not_mistaken_for_ours(tiny_cfg, tmp_path):
    cfg_from_list(["TRAIN.MODEL=resnet-18", "TRAIN.HEAD_BIAS=False", "LEGACY.PLCA_CLASS_ORDER=True"])
    state = published_plca(16)
    torch.save({"weights": state}, tmp_path / "plca.weights")
    network = build_network(cfg, str(tmp_path / "plca.weights"))
    for branch in range(4):
        kept = network.state_dict()[f"layer6.conv2d_list.{branch}.weight"]
        assert torch.equal(kept, state[f"classifier.0.convs.{branch}.0.weight"])
    snapshot = save_snapshot(tmp_path, network, 1, plain_cfg(cfg))
    build_network(cfg, str(snapshot))
    cfg.LEGACY.PLCA_CLASS_ORDER = False
    with pytest.raises(ValueError, match="was trained with LEGACY.PLCA_CLASS_ORDER True, .* set it to True here as well"):
        build_network(cfg, str(snapshot))


def test_predictions_are_scored_by_name_in_plcas_order(tiny_cfg):
    plain = build.eval_loader(cfg, CAFFE_BGR).dataset
    cfg.LEGACY.PLCA_CLASS_ORDER = True
    ordered = build.eval_loader(cfg, CAFFE_BGR).dataset
    ours, plcas = plain[0].label, ordered[0].label
    assert torch.equal(ours == IGNORE_LABEL, plcas == IGNORE_LABEL)
    for train_id in ours.unique().tolist():
        if train_id != IGNORE_LABEL:
            other = plcas[ours == train_id].unique().item()
            assert ordered.classes.names[other] == plain.classes.names[train_id]


# --- weights of losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch, weight", [(False, 0.75), (True, 1.5)])
def test_plcas_lovasz_weight_grows_with_iter_size(switch, weight):
    cfg_from_list(["TRAIN.LAMBDA_LOVASZ=0.75", "TRAIN.ITER_SIZE=2", f"LEGACY.PLCA_LOVASZ_FACTOR={switch}"])
    terms = {term.name: term.weight for term in build_objective(cfg, torch.device("cpu")).terms}
    assert terms["loss_lovasz"] == weight


def test_plcas_lovasz_factor_is_that_of_its_published_objective():
    for case in golden_cases("plca_total_objective.npz"):
        iter_size = case.settings["iter_size"]
        cfg_from_list(
            [
                f"TRAIN.LAMBDA_LOVASZ={case.settings['lovasz_weight']}",
                f"TRAIN.ITER_SIZE={iter_size}",
                "LEGACY.PLCA_LOVASZ_FACTOR=True",
            ]
        )
        terms = {term.name: term.weight for term in build_objective(cfg, torch.device("cpu")).terms}
        published = (case.arrays["ce_loss"] - case.arrays["cross_entropy"]) / case.arrays["lovasz"]
        assert terms["loss_lovasz"] == pytest.approx(float(published) / case.settings["world_size"])
