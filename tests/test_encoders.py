"""Vision transformers and ConvNeXt as encoders: maps in place, rates by layer, weights and their licences, whole runs."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from tiny import same
from torch import nn

import dada.torchvision_compat  # noqa: F401
from dada.build import build_network
from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.losses import upsample
from dada.evaluation.tester import evaluate_run as run_test
from dada.evaluation.windows import slide
from dada.model import build_model, load_weights
from dada.model.layer_rates import blocks_above, is_decayed
from dada.model.licences import check_licence, licence_of
from dada.model.timm_encoder import TimmSegmenter, needed_multiple, resized_to_multiple
from dada.model.vit_encoder import VitSegmenter
from dada.model.weight_files import read_weights
from dada.publishing.release_file import write_release
from dada.runs import run_of
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.trainer import build_optimizer

import timm  # isort: skip

K = 5
VIT = "timm:test_vit"  # six blocks, 64 channels, patches of 16, positions for 160x160
CONVNEXT = "timm:test_convnext"  # 1, 2, 4 and 2 blocks
SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3}
# encoder: (options, side of a patch)
PLAIN = {
    "test_vit": ({}, 16),
    "vit_small_patch14_dinov2": (SMALL, 14),
    "vit_small_patch14_reg4_dinov2": (SMALL, 14),
    "vit_small_patch16_dinov3": (SMALL, 16),
}


@pytest.fixture(scope="module", params=PLAIN)
def vit(request):
    torch.manual_seed(0)
    options, patch = PLAIN[request.param]
    model = VitSegmenter(request.param, K, multi_level=True, with_depth=True, encoder_options=options)
    return model, patch


@pytest.fixture(scope="module")
def tiny_vit():
    """A vision transformer for tests where any will do; never changed."""
    torch.manual_seed(0)
    return build_model(VIT, K)


def image(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# --- maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(112, 112), (70, 57), (1, 1)])
def test_a_vision_transformer_gives_maps_that_cover_an_image_of_any_size(vit, size):
    model, patch = vit
    with torch.no_grad():
        out = model.eval()(image(2, 3, *size))
    rows, columns = (-(-side // patch) for side in size)
    assert out.features.shape == (2, model.encoder.embed_dim, rows, columns)
    assert out.logits.shape == (2, K, 4 * rows, 4 * columns)
    assert out.aux_logits.shape == (2, K, rows, columns) and out.depth.shape == (2, 1, rows, columns)
    assert torch.equal(model.classify(out.features, out.skip), out.logits)
    with pytest.raises(ValueError, match=r"classify\(features, outputs\.skip\)"):
        model.classify(out.features)


def test_every_parameter_of_a_vision_transformer_learns_and_is_in_one_group(vit):
    model, _ = vit
    model.train().zero_grad()
    out = model(image(2, 3, 50, 60))
    sum(value.square().mean() for value in (out.logits, out.aux_logits, out.depth)).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    groups = model.parameter_groups()
    assert sum(map(len, groups.values())) == len(list(model.parameters())) and all(groups.values())
    model.zero_grad()


def test_features_are_the_normed_tokens_that_timm_computes(tiny_vit):
    theirs = timm.create_model("test_vit", num_classes=0).eval()
    theirs.load_state_dict(tiny_vit.encoder.state_dict())
    with torch.no_grad():
        x = image(2, 3, 160, 160)
        tokens = theirs.forward_features(x)[:, 1:]
        features = tiny_vit.eval()(x).features
    torch.testing.assert_close(features.flatten(2).mT, tokens)


def seeing_through(size: int) -> VitSegmenter:
    """A network without mixing: token channel 4a + b is the mean red of part (a, b) of a patch of 4x4 parts."""
    model = VitSegmenter("test_vit", K).eval()
    model.encoder.blocks = nn.Sequential(*(nn.Identity() for _ in model.encoder.blocks))
    model.encoder.norm = nn.Identity()
    with torch.no_grad():
        for parameter in (*model.encoder.parameters(), *model.finer.parameters()):
            parameter.zero_()
        for channel in range(16):
            a, b = divmod(channel, 4)
            model.encoder.patch_embed.proj.weight[channel, 0, 4 * a : 4 * a + 4, 4 * b : 4 * b + 4] = 1 / 16
        for channel in range(48):  # every channel of the finer map shows the same
            model.finer.expand[0].weight[channel * 16 + torch.arange(16), torch.arange(16), 0, 0] = 1.0
    return model


def test_positions_of_the_finer_map_and_of_the_features_are_where_they_are_in_the_image():
    model, x = seeing_through(16), image(1, 3, 48, 80)
    with torch.no_grad():
        out = model(x)
    torch.testing.assert_close(out.skip, F.avg_pool2d(x[:, :1], 4).expand(-1, 48, -1, -1))
    torch.testing.assert_close(out.features[:, :16].mean(dim=1), F.avg_pool2d(x[:, 0], 16))


@pytest.mark.parametrize("size", [(45, 61), (50, 33)])
def test_maps_of_an_image_that_patches_do_not_divide_span_exactly_the_image(size):
    """A ramp from 0 to 1 over the image is one over the map as well; padding would stretch it by up to a patch."""
    height, width = size
    x = ((torch.arange(width) + 0.5) / width).expand(1, 3, height, width)
    with torch.no_grad():
        out = seeing_through(16)(x)
    columns = out.skip.shape[3]
    expected = ((torch.arange(columns) + 0.5) / columns).expand_as(out.skip)
    torch.testing.assert_close(out.skip, expected, atol=0.005, rtol=0)
    back = upsample(out.skip, size, align_corners=False)[0, 0]
    torch.testing.assert_close(back[:, 3:-3], x[0, 0][:, 3:-3], atol=0.01, rtol=0)


def test_only_images_that_need_it_are_resized():
    x = image(1, 3, 28, 42)
    assert resized_to_multiple(x, 14) is x
    assert resized_to_multiple(x, 16).shape == (1, 3, 32, 48)


def test_convnext_leaves_no_rest_of_the_image_out_and_other_pyramids_see_it_as_it_is():
    model = build_model(CONVNEXT, K, output_stride=16).eval()
    with torch.no_grad():
        out = model(image(1, 3, 45, 33))
    assert out.features.shape[2:] == (3, 3) and out.logits.shape[2:] == (12, 12)
    assert TimmSegmenter("tf_efficientnet_lite0", K).multiple == 1


@pytest.mark.parametrize(
    ("name", "stride", "multiple"),
    [("convnext_atto_ols", 16, 16), ("hrnet_w18_small", 32, 32), ("dla46_c", 32, 32), ("mobilenetv3_small_050", 16, 1)],
)
def test_maps_of_any_encoder_span_images_of_any_size(name, stride, multiple):
    """Where the rest of a side was dropped, no position would depend on the last pixels."""
    torch.manual_seed(0)
    model = build_model(f"timm:{name}", K, output_stride=stride).eval()
    assert model.multiple == multiple
    x = image(1, 3, 2 * stride + 13, 3 * stride - 1).requires_grad_()
    features = model(x).features
    assert features.shape[2:] == (3, 3)
    slope = torch.autograd.grad(features.square().sum(), x)[0].abs().sum(dim=(0, 1))
    assert (slope[-1] > 0).any() and (slope[:, -1] > 0).any()


def test_an_encoder_for_one_size_is_refused_with_that_size():
    with pytest.raises(ValueError, match="'botnet26t_256' takes images of no size but 256x256, the size that it is made for"):
        build_model("timm:botnet26t_256", K, output_stride=32)


def test_trying_an_encoder_changes_nothing_of_it():
    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", features_only=True)
    before, drawn = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    assert needed_multiple("resnet10t", encoder, 32) == 1
    assert same(encoder.state_dict(), before) and encoder.training and torch.equal(torch.get_rng_state(), drawn)


def test_one_window_over_the_image_is_the_whole_image(tiny_vit):
    x = image(1, 3, 70, 90)

    def scores(part):
        return tiny_vit(part).logits

    with torch.no_grad():
        tiny_vit.eval()
        whole = upsample(scores(x), (70, 90), align_corners=False)
        assert torch.equal(slide(scores, x, (70, 90), (35, 45), False), whole)
        assert not torch.equal(slide(scores, x, (70, 64), (70, 26), False), whole)


# --- switches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_recomputing_changes_no_number_and_saves_memory(name):
    torch.manual_seed(0)
    model = build_model(name, K, output_stride=16).train()
    results, saved = [], []
    for on in (False, True):
        model.set_recompute(on)
        model.zero_grad()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, n=sizes: n.append(x.numel()) or x, lambda x: x):
            logits = model(image(2, 3, 70, 90)).logits
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
        saved.append(sum(sizes))
    assert same(*results)
    assert saved[1] < 0.7 * saved[0]


def test_channels_last_and_batch_norm_policies_change_nothing_in_a_vision_transformer(tiny_vit):
    model, x = copy.deepcopy(tiny_vit), image(2, 3, 48, 60)
    expected = tiny_vit.train()(x).logits
    for policy in ("frozen_affine", "eval"):
        model.set_bn_policy(policy)
        assert torch.equal(model.train()(x).logits, expected)
        assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x).logits, expected, rtol=1e-3, atol=1e-5)


def test_batch_norm_per_domain_is_refused_by_the_name_of_the_option():
    with pytest.raises(ValueError, match=r"VitSegmenter has no batch norm .* set TRAIN\.DOMAIN_BN to False"):
        build_model(VIT, K, domain_bn=True)


def test_other_encoders_are_no_vision_transformers():
    with pytest.raises(ValueError, match="'test_convnext' is not a plain vision transformer"):
        VitSegmenter("test_convnext", K)
    with pytest.raises(ValueError, match="no encoder 'vit_small_patch14_dino'; the nearest are vit_small_patch14_dinov2"):
        build_model("timm:vit_small_patch14_dino", K)


# --- learning rates ------------------------------------------------------------------------------------------


def rates_of(model, **options) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter in the optimizer that the options give."""
    cfg_from_list(["TRAIN.LEARNING_RATE=0.5", "TRAIN.LR_MULT=10", "TRAIN.WEIGHT_DECAY=0.25", "TRAIN.OPTIMIZER=AdamW"])
    cfg_from_list([f"TRAIN.{key}={value}" for key, value in options.items()])
    groups = build_optimizer(model, cfg).param_groups
    listed = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(listed) == sum(len(group["params"]) for group in groups)
    return {name: listed[id(parameter)] for name, parameter in model.named_parameters()}


def test_a_vision_transformers_rates_shrink_by_the_factor_from_block_to_block(tiny_vit):
    for name, (rate, decay) in rates_of(tiny_vit, LAYER_DECAY=0.8).items():
        parts = name.split(".")
        if parts[0] != "encoder":
            expected = 5.0
        elif parts[1] == "blocks":
            expected = 0.5 * 0.8 ** (6 - int(parts[2]))  # the last of six, number 5: once
        else:
            expected = 0.5 * {"norm": 1, "cls_token": 0.8**7, "pos_embed": 0.8**7, "patch_embed": 0.8**7}[parts[1]]
        assert rate == pytest.approx(expected), name
        assert decay == 0.25


def test_a_pyramids_rates_shrink_from_block_to_block_and_downsampling_belongs_to_what_follows():
    away = blocks_above(build_model(CONVNEXT, K, output_stride=16))
    assert {away[f"encoder.stem_{k}.weight"] for k in (0, 1)} == {10}
    first = (9, 8, 6, 2)  # of the stages of 1, 2, 4 and 2 blocks
    for stage, count in enumerate((1, 2, 4, 2)):
        assert [away[f"encoder.stages_{stage}.blocks.{k}.conv_dw.weight"] for k in range(count)] == [
            first[stage] - k for k in range(count)
        ]
        if stage:
            assert away[f"encoder.stages_{stage}.downsample.1.weight"] == first[stage]
    resnet = blocks_above(build_model("resnet-18", K))
    assert (resnet["conv1.weight"], resnet["layer1.0.conv1.weight"], resnet["layer4.1.bn2.bias"]) == (9, 8, 1)
    assert resnet["layer2.0.downsample.0.weight"] == 6 and not any(name.startswith("layer6") for name in resnet)


def test_weight_decay_can_leave_out_norms_biases_scales_tokens_and_positions():
    model = VitSegmenter("vit_small_patch14_reg4_dinov2", K, encoder_options=SMALL)
    found = rates_of(model, DECAY_NORMS=False)
    spared = {name for name, (_, decay) in found.items() if decay == 0}
    kinds = ("norm1.weight", "ls1.gamma", "qkv.bias", "pos_embed", "cls_token", "reg_token", "norm.weight", "classifier.bias")
    assert all(any(name.endswith(kind) for name in spared) for kind in kinds)
    decayed = {name: parameter for name, parameter in model.named_parameters() if name not in spared}
    assert all(parameter.ndim in (2, 4) for parameter in decayed.values())  # products and convolutions
    assert {rate for name, (rate, _) in found.items() if name.startswith("encoder.")} == {0.5}
    assert not is_decayed("encoder.pos_embed", model.encoder.pos_embed)


def test_without_the_options_the_groups_are_the_backbone_and_the_head_as_ever(tiny_vit):
    cfg_from_list(["TRAIN.OPTIMIZER=AdamW"])
    groups = build_optimizer(tiny_vit, cfg).param_groups
    expected = tiny_vit.parameter_groups()
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(p) for p in g] for g in expected.values()]
    assert [group["lr"] for group in groups] == [cfg.TRAIN.LEARNING_RATE, 10 * cfg.TRAIN.LEARNING_RATE]


def test_a_network_of_unknown_blocks_is_refused():
    other = build_model("timm:test_byobnet", K, output_stride=32)
    with pytest.raises(ValueError, match=r"TRAIN\.LAYER_DECAY .*TimmSegmenter \(test_byobnet\) do not show them; set it to 1"):
        rates_of(other, LAYER_DECAY=0.9)


# --- weights -------------------------------------------------------------------------------------------------


def as_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A DINOv2 with registers under the names of its authors: positions begin with that of the class token."""
    theirs = {name: value for name, value in state.items() if name not in ("reg_token", "pos_embed")}
    theirs["register_tokens"] = state["reg_token"]
    theirs["pos_embed"] = torch.cat([torch.full_like(state["cls_token"], 2.0), state["pos_embed"]], dim=1)
    return {**theirs, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def test_the_authors_file_of_dinov2_sets_the_encoder(tmp_path, monkeypatch):
    name, create = "vit_small_patch14_reg4_dinov2", timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, **SMALL}))
    model = build_model(f"timm:{name}", K)
    state = {k: torch.full_like(v, 0.5) for k, v in model.encoder.state_dict().items()}
    torch.save(as_published(state), tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    report = load_weights(model, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    assert all(key.startswith(("finer.", "decoder.")) for key in report.missing)
    state["cls_token"] = state["cls_token"] + 2.0  # timm adds its position once and for all
    assert same(model.encoder.state_dict(), state)


@pytest.mark.parametrize("classifier", [True, False])
def test_timms_file_of_a_vision_transformer_may_have_a_classifier(tiny_vit, tmp_path, classifier):
    theirs = timm.create_model("test_vit", num_classes=1000 if classifier else 0)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    model = copy.deepcopy(tiny_vit)
    report = load_weights(model, tmp_path / "vit.pth")
    assert report.ignored == (("head.weight", "head.bias") if classifier else ())
    assert torch.equal(model.encoder.blocks[3].attn.qkv.weight, theirs.blocks[3].attn.qkv.weight)


def test_anothers_weights_and_a_missing_block_are_refused_with_names(tiny_vit, tmp_path):
    state = timm.create_model("test_vit").state_dict()
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    torch.save({k: v for k, v in state.items() if "blocks.2." not in k}, tmp_path / "cut.pth")
    torch.save({**state, "pos_embed": state["pos_embed"][:, :-1]}, tmp_path / "shape.pth")
    for file, match in (
        ("other.pth", "not those of the timm encoder 'test_vit': .* such as stem.0.weight"),
        ("cut.pth", "not those of the timm encoder 'test_vit': "),
        ("shape.pth", r"encoder.pos_embed \(1, 100, 64\) for \(1, 101, 64\)"),
    ):
        with pytest.raises(ValueError, match=match):
            load_weights(tiny_vit, tmp_path / file)


def test_imagenet_takes_the_weights_that_timm_fetches(tiny_vit, monkeypatch):
    create, asked = timm.create_model, []

    def hub(name, pretrained=False, **options):
        asked.extend([name] * pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", hub)
    model = copy.deepcopy(tiny_vit)
    nn.init.zeros_(model.encoder.pos_embed)
    report = load_weights(model, "imagenet")
    assert asked == ["test_vit"] and report.source == "timm test_vit"
    assert set(report.loaded) == {f"encoder.{key}" for key in model.encoder.state_dict()}
    assert model.encoder.pos_embed.std() > 0


# --- licences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "licence"),
    [
        ("vit_base_patch14_reg4_dinov2", "apache-2.0"),
        ("convnext_tiny", "apache-2.0"),
        ("vit_small_patch16_dinov3", "dinov3-license"),
        ("convnext_tiny.dinov3_lvd1689m", "dinov3-license"),
        ("convnextv2_atto", "cc-by-nc-4.0"),
        ("vit_base_patch16_224.mae", "cc-by-nc-4.0"),
        ("mobilevit_s", "cvnets-license"),  # timm's own table
    ],
)
def test_licences_are_those_of_the_publishers(encoder, licence):
    assert licence_of(encoder).name == licence
    if licence == "apache-2.0":
        check_licence(encoder)
    else:
        with pytest.raises(ValueError, match=rf"under {licence}, which is not a permissive .*set TRAIN\.ACCEPT_LICENCE to"):
            check_licence(encoder, "apache-2.0")


def test_weights_under_other_licences_are_neither_fetched_nor_read_before_they_are_accepted(tmp_path, monkeypatch, caplog):
    name = "convnextv2_atto"
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    model = build_model(f"timm:{name}", K, output_stride=32)  # random weights need no licence
    refused = r"convnextv2_atto\.fcmae_ft_in1k are under cc-by-nc-4\.0.*README.*ACCEPT_LICENCE is ''.*to 'cc-by-nc-4\.0'"
    for source in ("imagenet", tmp_path / "weights.pth"):
        with pytest.raises(ValueError, match=refused):
            load_weights(model, source)
    load_weights(model, tmp_path / "weights.pth", accept_licence="CC-BY-NC-4.0")
    assert "are under cc-by-nc-4.0" in caplog.text and "so is what is trained from them" in caplog.text
    # What was trained from them was let through when it was trained.
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    load_weights(model, tmp_path / "whole.pth")


def test_an_unknown_licence_is_told_and_let_through(caplog):
    assert licence_of("dla60_res2net").name == ""
    with caplog.at_level(logging.WARNING):
        check_licence("dla60_res2net")
    assert "no licence is known for the weights dla60_res2net.in1k" in caplog.text


# --- whole runs ----------------------------------------------------------------------------------------------


def test_a_run_with_a_vision_transformer_resumes_exactly_is_tested_in_windows_and_released(tiny_cfg, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    cfg_from_list(
        [
            f"TRAIN.MODEL={VIT}",
            f"TRAIN.RESTORE_FROM={tmp_path / 'vit.pth'}",
            "CONTRASTIVE_LEARNING=True",
            "TRAIN.OPTIMIZER=AdamW",
            "TRAIN.LAYER_DECAY=0.8",
            "TRAIN.DECAY_NORMS=False",
            "TRAIN.RECOMPUTE=True",
            "TRAIN.CHANNELS_LAST=True",
            "TRAIN.CHECKPOINT_EVERY=1",
            "DATA_TRANSFORM.CROPSIZE=60",
            "TEST.SLIDE_CROP=[64, 64]",
            "EXP_NAME=whole",
        ]
    )
    try:
        train(cfg, run_of(cfg))
        whole = run_of(cfg).snapshots
        cfg_from_list(["EXP_NAME=stopped", "TRAIN.EARLY_STOP=1"])
        train(cfg, run_of(cfg))
        stopped = run_of(cfg).snapshots
        cfg_from_list(["TRAIN.EARLY_STOP=0", "TRAIN.LAYER_DECAY=0.7"])
        with pytest.raises(ValueError, match=r"TRAIN\.LAYER_DECAY: checkpoint has 0\.8, cfg has 0\.7"):
            train(cfg, run_of(cfg), resume="auto")
        cfg_from_list(["TRAIN.LAYER_DECAY=0.8"])
        train(cfg, run_of(cfg), resume="auto")
        ours, theirs = (read_checkpoint(folder / "checkpoint_2.pth") for folder in (stopped, whole))
        assert all(same(ours[key], theirs[key]) for key in ("state_dict", "optimizers", "rng"))
        run_test(cfg, run_of(cfg))
    finally:
        torch.set_num_threads(threads)
    said = write_release(cfg, stopped / "model_2.pth", tmp_path / "vit.safetensors")
    assert said["encoder_licence"] == "apache-2.0" and '"SLIDE_CROP": [64, 64]' in said["test"]
    state = read_weights(tmp_path / "vit.safetensors").state
    again = build_network(cfg, str(tmp_path / "vit.safetensors"))
    assert same(dict(again.state_dict()), state) and same(state, dict(ours["state_dict"]))
