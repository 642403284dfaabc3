"""Every network: shapes, gradients, batch norm, optimizer groups, and the messages for bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from slim_resnets import slim, whole_resnet  # noqa: F401  (fixtures)
from torch import nn

import dada.torchvision_compat  # noqa: F401
from dada.model import FCDiscriminator, build_model, check_parameter_groups, convert_domain_batch_norm, select_domain
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


@pytest.mark.usefixtures("whole_resnet")
@pytest.mark.parametrize("depth", [18, 50])  # one of each kind of block
def test_trunk_equals_torchvision_at_output_stride_32(depth, tmp_path):
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


@pytest.mark.usefixtures("whole_resnet")
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
