"""Networks against the published code of ADVENT, DADA, its fork and PLCA: names, what is trained, outputs."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from golden_cases import GOLDEN, Case, assert_close_relative, golden_cases, golden_recipe
from torch import nn

from dada.label_sets import PLCA_CLASSES
from dada.model import (
    DeepLabV2,
    FCDiscriminator,
    SegmentationModel,
    build_model,
    convert_domain_batch_norm,
    load_weights,
    select_domain,
    undilated_resnet18,
)
from dada.model.batch_norm import batch_norms
from dada.model.weight_formats import convert_fork_resnet18, convert_plca

CASES = golden_cases("models.npz")
INDEX = json.loads((GOLDEN / "models_index.json").read_text())
STAGES = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")

# README of the golden files: relative errors in float64 and in float32.
EXACT, BATCH_STATISTICS, SINGLE = 1e-9, 1e-6, 2e-5
SINGLE_TRAIN = {18: 5e-5, 101: 5e-3}


def entries(case: Case) -> dict[str, dict]:
    return {entry["key"]: entry for entry in INDEX[case.name]["entries"]}


def is_plca(case: Case) -> bool:
    return any(key.startswith(("classifier.", "backbone.")) for key in entries(case))


def is_discriminator(case: Case) -> bool:
    return not any("layer4." in key for key in entries(case))


def domains(case: Case) -> int:
    return len({k.split("norm_layers.")[1].split(".")[0] for k in entries(case) if "norm_layers." in k})


def depth_of(case: Case) -> int:
    return 101 if any(key.endswith("layer3.22.conv3.weight") for key in entries(case)) else 18


def plca_discriminator(state: dict) -> dict:
    places = {"conv1": "0", "conv2": "2", "conv3": "4", "conv4": "6", "classifier": "8"}
    return {f"{places[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}


def own_names(case: Case, state: dict) -> dict:
    """Published names to ours; PLCA's class order is kept, as the golden arrays are in it."""
    if is_plca(case):
        return plca_discriminator(state) if is_discriminator(case) else convert_plca(state, permute_classes=False)
    if depth_of(case) == 18 and not is_discriminator(case):
        return convert_fork_resnet18(state)
    return state


def build(case: Case) -> nn.Module:
    """Our form of the network, chosen by what its published state dict holds."""
    keys, num_classes = entries(case), case.settings["num_classes"]
    if is_discriminator(case):
        return FCDiscriminator(num_classes)
    if is_plca(case):
        model = DeepLabV2(num_classes, head_bias=False)
        return convert_domain_batch_norm(model) if domains(case) else model
    if depth_of(case) == 18:
        model = undilated_resnet18(num_classes)
        for name, module in model.named_modules():  # the fork trains neither the stem's batch norms nor the shortcuts'
            if name == "bn1" or name.endswith("downsample"):
                for norm in batch_norms(module):
                    norm.requires_grad_(False)
        return model
    multi_level = "layer5.conv2d_list.0.weight" in keys
    with_depth = "enc4_1.weight" in keys
    return DeepLabV2(num_classes, multi_level=multi_level, with_depth=with_depth, bn_policy="frozen_affine")


recipe = functools.cache(golden_recipe)


def published_state(case: Case) -> dict[str, torch.Tensor]:
    state = {}
    for key, entry in entries(case).items():
        shape = tuple(entry["shape"])
        if entry["dtype"].startswith("float"):
            state[key] = recipe(key, shape, case.settings["salt"])
        else:
            state[key] = torch.zeros(shape, dtype=torch.int64)
    return state


@pytest.fixture(scope="module", autouse=True)
def _free_the_recipe_cache():
    yield
    recipe.cache_clear()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


def published_file(case: Case, folder: Path) -> Path:
    """The weights in a file as that code writes it; ADVENT's and DADA's PyTorch had a file format of its own."""
    state, path = published_state(case), folder / "published.pth"
    if is_plca(case):
        torch.save({"weights": state}, path)
    elif depth_of(case) == 18:
        torch.save({"state_dict": state, "iter": 30000}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def model(case, tmp_path_factory) -> nn.Module:
    """The network with the recipe's weights out of a file, float32, eval mode, source domain where it has domains.

    PLCA's class order is kept, as the golden arrays are in it.
    """
    model = build(case)
    if is_discriminator(case):
        model.load_state_dict(own_names(case, published_state(case)), strict=True)
        return model.eval()
    path = published_file(case, tmp_path_factory.mktemp("published"))
    report = load_weights(model, path, plca_class_order=True)
    assert not report.missing and not report.ignored
    path.unlink()  # 170 MB
    select_domain(model, 0)
    return model.eval()


def with_arrays(name: str) -> pytest.MarkDecorator:
    """Run a test on the cases that hold the array `name`, instead of all."""
    chosen = [case for case in CASES if name in case.arrays]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name, indirect=True)


class Run:
    """One forward pass: our outputs under the names of the golden arrays, and statistics of every stage."""

    def __init__(self, model: nn.Module, image: torch.Tensor) -> None:
        self.stages: dict[str, torch.Tensor] = {}
        hooks = []
        for name in STAGES if isinstance(model, SegmentationModel) else ():
            # Cloned, since the ReLU that follows bn1 works in place.
            keep = lambda _, __, out, name=name: self.stages.__setitem__(name, out.detach().clone())  # noqa: E731
            hooks.append(getattr(model, name).register_forward_hook(keep))
        with torch.no_grad():
            out = model(image)
        for hook in hooks:
            hook.remove()
        self.outputs = {}
        if not isinstance(model, SegmentationModel):
            self.outputs["main"] = out
            return
        self.outputs["main"] = out.logits
        self.outputs["feat"] = out.features[:, ::32]
        self.outputs["aux_feat"] = self.stages["layer3"][:, ::32]
        if out.aux_logits is not None:
            self.outputs["aux"] = out.aux_logits
        if out.depth is not None:
            self.outputs["depth"] = out.depth


def test_state_names_shapes_and_types_are_the_published_ones(case):
    published = entries(case)
    renamed = own_names(case, {key: key for key in published})
    own = build(case).state_dict()
    assert set(renamed) == set(own)
    for name, key in renamed.items():
        assert list(own[name].shape) == published[key]["shape"], key
        assert str(own[name].dtype) == "torch." + published[key]["dtype"], key


def test_trainable_parameters_and_their_groups_are_the_published_ones(case):
    published = entries(case)
    renamed = own_names(case, {key: key for key in published})
    model = build(case)
    parameters = dict(model.named_parameters())
    kinds = {name: published[key]["kind"] for name, key in renamed.items()}
    assert {name for name, kind in kinds.items() if kind == "parameter"} == set(parameters)
    group_of = {}
    if isinstance(model, SegmentationModel):
        group_of = {id(p): group for group, ps in model.parameter_groups().items() for p in ps}
    for name, parameter in parameters.items():
        entry = published[renamed[name]]
        assert parameter.requires_grad == entry["trainable"], name
        assert group_of.get(id(parameter)) == entry["group"], name


def test_weights_of_the_recipe_are_reproduced(case):
    state = published_state(case)
    for key, values in case.settings.get("weight_probe", {}).items():
        assert state[key].flatten()[: len(values)].tolist() == values
    total = sum(v.double().abs().sum() for v in state.values() if v.is_floating_point())
    torch.testing.assert_close(total, case.tensor("weights_abs_sum"), rtol=1e-9, atol=0)


def test_outputs_in_float32(case, model):
    run = Run(model, case.tensor("input"))
    assert_close_relative(run.outputs["main"], case.tensor("f32_main"), SINGLE)


def test_outputs_and_stages_in_float64(case, model):
    model = model.double()
    try:
        checked = 0
        for domain in range(max(1, domains(case))):
            select_domain(model, domain)
            run = Run(model, case.tensor("input", torch.float64))
            suffix = f"_domain{domain}" if domains(case) else ""
            for name, value in run.outputs.items():
                if name + suffix in case.arrays:
                    assert_close_relative(value, case.tensor(name + suffix), EXACT)
                    checked += 1
            for stage, value in run.stages.items() if domain == 0 else ():
                assert list(value.shape) == case.arrays[f"stage_{stage}_shape"].tolist(), stage
                statistics = torch.stack([value.mean(), value.std(), value.min(), value.max()])
                assert_close_relative(statistics, case.tensor(f"stage_{stage}_mean_std_min_max"), EXACT)
                assert_close_relative(value[0, :8, 0, 0], case.tensor(f"stage_{stage}_first8"), EXACT)
        assert checked >= 1
        named = [name for name in case.arrays if name.split("_domain")[0] in run.outputs]
        assert checked == len(named), f"of {named}, {checked} were compared"
    finally:
        select_domain(model, 0)
        model.float()


@with_arrays("test_aggregated_probs")  # PLCA's network
def test_weights_of_plca_give_its_outputs_in_our_class_order(case, tmp_path):
    path = published_file(case, tmp_path)
    model = build_model("DeepLabv2", case.settings["num_classes"], head_bias=False, weights=path).eval()
    path.unlink()
    with torch.no_grad():
        logits = model(case.tensor("input")).logits
    in_plcas_order = logits[:, list(PLCA_CLASSES[logits.shape[1]])]
    assert_close_relative(in_plcas_order, case.tensor("f32_main"), SINGLE)


@pytest.mark.parametrize("case", [c for c in CASES if c.name == "advent_deeplab_single"], ids=lambda c: c.name, indirect=True)
def test_the_caffe_file_gives_the_published_trunk(case, tmp_path):
    state = published_state(case)
    trunk = {f"Scale.{key}": value for key, value in state.items() if not key.startswith("layer6.")}
    torch.save({**trunk, "Scale.layer5.weight": torch.zeros(1000, 2048)}, tmp_path / "caffe.pth")
    model = build_model("DeepLabv2", case.settings["num_classes"], weights=tmp_path / "caffe.pth").eval()
    (tmp_path / "caffe.pth").unlink()
    head = {key.removeprefix("layer6."): value for key, value in state.items() if key.startswith("layer6.")}
    model.layer6.load_state_dict(head)
    with torch.no_grad():
        assert_close_relative(model(case.tensor("input")).logits, case.tensor("f32_main"), SINGLE)


@with_arrays("test_aggregated_probs")
def test_features_aggregated_before_the_classifier_at_test_time(case, model):
    from dada.domain_adaptation.cycle_association import spatial_aggregation

    model = model.double()
    try:
        with torch.no_grad():
            out = model(case.tensor("input", torch.float64))
            mixed = spatial_aggregation(out.features, alpha=0.5, metric="cos")
            probs = model.classify(mixed, out.skip).softmax(dim=1)
            probs = spatial_aggregation(probs, alpha=0.5, metric="kl")
        assert_close_relative(probs, case.tensor("test_aggregated_probs"), EXACT)
    finally:
        model.float()


@with_arrays("train_input")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_batch_statistics_in_training(case, dtype):
    model = build(case)
    model.load_state_dict(own_names(case, published_state(case)), strict=True)
    model.to(dtype).train()
    with torch.no_grad():
        logits = model(case.tensor("train_input", dtype)).logits
    if dtype == torch.float32:
        assert_close_relative(logits, case.tensor("f32_train_main"), SINGLE_TRAIN[depth_of(case)])
        return
    assert_close_relative(logits, case.tensor("train_main"), BATCH_STATISTICS)
    assert_close_relative(model.bn1.running_mean, case.tensor("train_bn1_running_mean"), BATCH_STATISTICS)
    assert_close_relative(model.bn1.running_var, case.tensor("train_bn1_running_var"), BATCH_STATISTICS)
    last = model.layer4[-1]
    last_norm = last.bn3 if hasattr(last, "bn3") else last.bn2
    wanted = case.tensor("train_layer4_bn_running_var")
    assert_close_relative(last_norm.running_var, wanted, BATCH_STATISTICS)
