"""Frozen encoders and low-rank adapters: what learns, what stays to the last bit, and what snapshots hold of it."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny import TINY_NETWORK, same, tiny_options
from torch import nn

import dada.torchvision_compat  # noqa: F401
from dada.build import build_network
from dada.config import cfg, cfg_from_list, default_cfg
from dada.domain_adaptation.objectives import build_objective
from dada.evaluation.tester import load_predictor
from dada.model import build_model, load_weights
from dada.model.base_file import hash_of
from dada.model.low_rank import LowRankLinear, has_adapters, is_adapter, merged
from dada.model.vit_encoder import VitSegmenter
from dada.model.weight_files import read_weights
from dada.publishing.release_file import write_release
from dada.runs import find_snapshots, run_of, set_aside
from dada.training.checkpoint import read_checkpoint
from dada.training.idle import idle_parts
from dada.training.loop import train
from dada.training.trainer import build_optimizer

import timm  # isort: skip

CPU = torch.device("cpu")
K = 5
VIT = "timm:test_vit"
LORA = [f"TRAIN.MODEL={VIT}", "TRAIN.ADAPTER=lora", "TRAIN.LORA_RANK=4", "TRAIN.OPTIMIZER=AdamW", "TRAIN.LEARNING_RATE=0.01"]
FROZEN = [f"TRAIN.MODEL={TINY_NETWORK}", "TRAIN.FREEZE_ENCODER=True", "TRAIN.LEARNING_RATE=0.01"]
ALL = ("qkv", "proj", "mlp")
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
# One of each kind of block that timm's plain vision transformers are made of, and the kinds of products that it has.
ENCODERS = {
    "vit_small_patch14_dinov2": (SMALL, ALL),
    "vit_small_patch16_dinov3": (SMALL, ALL),
    "eva02_tiny_patch14_224": (SMALL, ALL),  # reads the weight of qkv and never calls the layer
    "eva02_base_patch14_224": (SMALL, ALL),  # q, k and v apart, a gated MLP
    "vit_base_patch16_xp_224": (SMALL, ALL),  # attention and MLP at once
    "vit_small_patch16_18x2_224": (SMALL, ALL),  # two of each side by side
    "vit_dpwee_patch16_reg1_gap_256": ({**SMALL, "num_heads": 2}, ("qkv", "proj")),
}


def image(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def move_b(layer: nn.Module) -> None:
    """Move all of B in `layer` away from 0, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=ENCODERS)
def encoder(request):
    """A small vision transformer, and its kinds of products."""
    options, kinds = ENCODERS[request.param]
    return VitSegmenter(request.param, K, encoder_options=options).eval(), kinds


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- one layer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_wx_plus_b_plus_alpha_over_r_times_bax(bias):
    rank, alpha = 2, 3.0
    layer = LowRankLinear(nn.Linear(4, 3, bias=bias), rank, alpha)
    move_b(layer)
    x = image(2, 5, 4)
    state = {name: value.double().tolist() for name, value in layer.state_dict().items()}
    b = state["bias"] if bias else [0.0] * 3
    with torch.no_grad():
        y = layer(x)
    for i in range(2):
        for j in range(5):
            v = x[i, j].double().tolist()
            inner = [sum(state["lora_a"][r][k] * v[k] for k in range(4)) for r in range(rank)]
            for o in range(3):
                wx = sum(state["weight"][o][k] * v[k] for k in range(4))
                low = sum(state["lora_b"][o][r] * inner[r] for r in range(rank))
                assert y[i, j, o].item() == pytest.approx(wx + b[o] + alpha / rank * low, abs=1e-6)


def test_gradients_reach_a_and_b_and_the_input_and_nothing_else():
    linear = nn.Linear(4, 3).double().requires_grad_(False)
    layer = LowRankLinear(linear, 2, 3.0)
    move_b(layer)
    x = image(5, 4).double().requires_grad_()

    def output(x, a, b):
        return torch.func.functional_call(layer, {"lora_a": a, "lora_b": b}, (x,))

    assert torch.autograd.gradcheck(output, (x, layer.lora_a, layer.lora_b))
    layer(x).sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["lora_a", "lora_b"]


def test_its_weight_is_that_of_the_sum_so_that_who_reads_it_gets_the_same_function():
    layer = LowRankLinear(nn.Linear(4, 3), 2, 3.0)
    assert torch.equal(layer.weight, layer.state_dict()["weight"])
    move_b(layer)
    x = image(5, 4)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x))


# --- any vision transformer ----------------------------------------------------------------------------------


def test_adapters_start_as_the_encoder_that_they_are_added_to_to_the_last_bit(encoder):
    model, kinds = encoder
    names = list(model.state_dict())
    with torch.no_grad():
        before = model(image(1, 3, 30, 20))
        model.add_low_rank(kinds, 4, 8.0)
        after = model(image(1, 3, 30, 20))
    assert torch.equal(before.logits, after.logits) and torch.equal(before.features, after.features)
    assert [name for name in model.state_dict() if not is_adapter(name)] == names


def test_every_adapter_learns_and_so_does_nothing_else_of_the_encoder(encoder):
    model, kinds = encoder
    model.add_low_rank(kinds, 4, 8.0)
    model.train()
    model(image(1, 3, 30, 20)).logits.square().mean().backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in model.named_parameters() if p.grad is not None}  # none is left for DDP to wait for
    assert all(is_adapter(name) for name in learning if name.startswith("encoder."))
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if name.endswith("lora_b"))


def test_merged_weights_give_the_same_maps_but_for_rounding(encoder):
    model, kinds = encoder
    plain = VitSegmenter(model.encoder_name, K, encoder_options=ENCODERS[model.encoder_name][0]).eval()
    model.add_low_rank(kinds, 4, 8.0)
    move_b(model)
    plain.load_state_dict(merged(model.state_dict()))
    with torch.no_grad():
        theirs, ours = model(image(1, 3, 30, 20)), plain(image(1, 3, 30, 20))
    for a, b in ((theirs.features, ours.features), (theirs.logits, ours.logits)):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()  # float32: 1e-6 and less were seen


def test_the_layers_asked_for_get_adapters_of_the_rank_asked_for():
    model = build_model(VIT, K)
    model.add_low_rank(["proj"], 3, 8.0)
    found = {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    assert list(found) == [f"encoder.blocks.{n}.attn.proj" for n in range(6)]
    assert all(m.lora_a.shape == (3, 64) and m.lora_b.shape == (64, 3) and m.lora_scale == 8 / 3 for m in found.values())


def test_recomputed_blocks_give_adapters_the_same_gradients():
    torch.manual_seed(0)
    model = build_model(VIT, K)
    model.add_low_rank(ALL, 4, 8.0)
    move_b(model)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(image(1, 3, 32, 32)).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if is_adapter(name)}

    plain = gradients()
    model.set_recompute(True)
    assert same(gradients(), plain)


def test_networks_without_such_products_are_refused_with_what_to_do():
    refused = r"TRAIN\.ADAPTER lora is for vision transformers .*; TimmSegmenter is not one.*TRAIN\.FREEZE_ENCODER=True"
    with pytest.raises(ValueError, match=refused):
        build_model(TINY_NETWORK, K).add_low_rank(ALL, 4, 8.0)
    model = VitSegmenter("vit_dpwee_patch16_reg1_gap_256", K, encoder_options={**SMALL, "num_heads": 2})
    with pytest.raises(ValueError, match=r"is called mlp: leave it out of TRAIN\.LORA_LAYERS"):
        model.add_low_rank(ALL, 4, 8.0)


# --- rates ---------------------------------------------------------------------------------------------------


def rates(*options: str) -> dict[str, float]:
    """Learning rate of everything that the optimizer moves, by name."""
    cfg_from_list([*options, "TRAIN.LEARNING_RATE=0.1", "TRAIN.LR_MULT=10"])
    network = build_network(cfg, "")
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in build_optimizer(network, cfg).param_groups for p in group["params"]}


def test_adapters_have_the_rate_of_the_encoder_and_heads_their_own():
    found = rates(*LORA)
    assert {is_adapter(name) for name in found if found[name] == 0.1} == {True}
    assert {name.split(".")[0] for name in found if found[name] == 1.0} == {"finer", "decoder"}
    decayed = rates(*LORA, "TRAIN.LAYER_DECAY=0.5", "TRAIN.DECAY_NORMS=False")
    assert decayed["encoder.blocks.5.attn.qkv.lora_a"] == 0.05
    assert decayed["encoder.blocks.0.attn.qkv.lora_b"] == pytest.approx(0.1 * 0.5**6)


@pytest.mark.parametrize("more", [[], ["TRAIN.LAYER_DECAY=0.5"]])
def test_the_optimizer_holds_nothing_of_a_frozen_encoder(more):
    found = rates(*FROZEN, *more)
    assert {name.split(".")[0] for name in found} == {"decoder"} and set(found.values()) == {1.0}


@pytest.mark.parametrize("name", ["resnet-18", TINY_NETWORK, VIT])
def test_a_frozen_backbone_stays_in_eval_mode_and_heads_do_not(name):
    model = build_model(name, K)
    model.freeze_backbone()
    model.train()
    assert not any(m.training for part in model.backbone_modules() for m in part.modules())
    assert all(m.training for part in model.head_modules() for m in part.modules())
    model(image(2, 3, 32, 32)).logits.sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == set(model.frozen) != set()


# --- whole runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["lora", "frozen"])
def done(request, city, tmp_path_factory):
    """The cfg of a run of two iterations, from a base of its own; never changed, and neither are its files."""
    folder = tmp_path_factory.mktemp(request.param)
    options = LORA if request.param == "lora" else [*FROZEN, "TRAIN.ADABN_IMAGES=2"]
    options = [*tiny_options(city, folder / "runs"), *options, "CONTRASTIVE_LEARNING=True", "SELF_TRAINING.LAMBDA_MIX=1"]
    own = cfg_from_list([*options, "TRAIN.CHECKPOINT_EVERY=1", "TRAIN.SAVE_PRED_EVERY=1"], default_cfg())
    torch.manual_seed(5)
    torch.save(timm.create_model(own.TRAIN.MODEL[len("timm:") :]).state_dict(), folder / "base.pth")
    own.TRAIN.RESTORE_FROM = str(folder / "base.pth")
    train(own, run_of(own))
    return own


@pytest.fixture
def folder(done, tmp_path):
    """A copy of the files of `done`."""
    return Path(shutil.copytree(run_of(done).snapshots, tmp_path / "copied"))


def test_what_is_frozen_is_the_base_to_the_last_bit_after_training_and_the_rest_has_moved(done):
    base = dict(build_network(done, done.TRAIN.RESTORE_FROM).state_dict())
    state = read_checkpoint(run_of(done).snapshots / "checkpoint_2.pth")["state_dict"]
    assert state.keys() == base.keys()
    for name, value in base.items():  # of a frozen encoder also the statistics of its batch norms
        moves = not name.startswith("encoder.") or (is_adapter(name) and not name.endswith("lora_scale"))
        assert torch.equal(state[name], value) != moves, name


def test_snapshots_hold_what_was_trained_and_one_file_beside_them_the_rest(done):
    folder = run_of(done).snapshots
    network = build_network(done, "")
    (base,) = folder.glob("base-*.pth")  # that of two networks and of two teachers
    kept = torch.load(base)["state_dict"]
    assert kept.keys() == {n for n, _ in network.named_parameters() if n.startswith("encoder.") and not is_adapter(n)}
    for snapshot in (*find_snapshots(folder), folder / "teacher_2.pth"):
        content = torch.load(snapshot)
        assert content["base"] == hash_of(kept) and content["base"].startswith(base.stem.removeprefix("base-"))
        assert content["state_dict"].keys() == network.state_dict().keys() - kept.keys()


def test_a_snapshot_is_refused_beside_another_base_and_without_any(done, folder):
    snapshot = folder / "model_2.pth"
    (base,) = folder.glob("base-*.pth")
    content = torch.load(base)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = content["state_dict"][name] + 1e-6
    base.rename(folder / "kept")
    with pytest.raises(FileNotFoundError, match=rf"only what was trained; the frozen weights of its run, {base.name}, are not"):
        build_network(done, str(snapshot))
    torch.save(content, base)
    with pytest.raises(ValueError, match=rf"{base.name} holds other weights than those that model_2\.pth was trained with"):
        build_network(done, str(snapshot))
    base.write_bytes((folder / "kept").read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{base.name}, the frozen weights of model_2\.pth, is damaged"):
        build_network(done, str(snapshot))


def test_a_stopped_run_goes_on_as_if_it_had_not_been_and_needs_no_base(done):
    own, whole = copy.deepcopy(done), run_of(done).snapshots
    cfg_from_list(["EXP_NAME=stopped", "TRAIN.EARLY_STOP=1"], own)
    train(own, run_of(own))
    cfg_from_list(["TRAIN.EARLY_STOP=0", "TRAIN.RESTORE_FROM=gone.pth"], own)
    train(own, run_of(own), resume="auto")
    stopped = run_of(own).snapshots
    ours, theirs = (read_checkpoint(folder / "checkpoint_2.pth") for folder in (stopped, whole))
    assert all(same(ours[key], theirs[key]) for key in ("state_dict", "teacher", "optimizers", "rng"))
    ours, theirs = (torch.load(folder / "model_2.pth") for folder in (stopped, whole))
    assert all(same(ours[key], theirs[key]) for key in ("state_dict", "base"))
    other = "TRAIN.LORA_ALPHA=2" if own.TRAIN.ADAPTER else "TRAIN.FREEZE_ENCODER=False"
    cfg_from_list([other, "TRAIN.MAX_ITERS=3"], own)
    with pytest.raises(ValueError, match=rf"{other.split('=')[0]}: checkpoint has"):
        train(own, run_of(own), resume="auto")


def test_what_is_set_aside_keeps_its_base(folder):
    expected = read_weights(folder / "model_2.pth").state
    later = set_aside(folder, after=1)  # a run that goes on from iteration 1 keeps its base
    assert same(read_weights(later / "model_2.pth").state, expected) and read_weights(folder / "model_1.pth").state
    former = set_aside(folder)
    assert read_weights(former / "model_1.pth").state and not list(folder.glob("base-*.pth"))


def test_a_test_and_a_release_have_one_whole_network(done, tmp_path):
    snapshot = run_of(done).snapshots / "model_2.pth"
    network = load_predictor(done, [snapshot], CPU).networks[0]
    write_release(done, snapshot, tmp_path / "network.safetensors")
    released = read_weights(tmp_path / "network.safetensors").state
    assert same(dict(network.state_dict()), released) and not has_adapters(released)
    live = build_network(done, str(snapshot)).eval()
    assert has_adapters(live.state_dict()) == bool(done.TRAIN.ADAPTER)
    with torch.no_grad():
        a, b = live(image(1, 3, 32, 32)).logits, network(image(1, 3, 32, 32)).logits
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_statistics_of_the_target_are_in_the_snapshot_of_a_frozen_encoder(done):
    folder = run_of(done).snapshots
    trained, adapted = (read_weights(folder / f"{name}_2.pth").state for name in ("checkpoint", "model"))
    changed = [name for name, value in adapted.items() if not torch.equal(value, trained[name])]
    norms = [name for name in trained if name.endswith(("running_mean", "running_var"))]
    assert bool(norms) != bool(done.TRAIN.ADAPTER)
    assert set(norms) <= set(changed) and all("running" in n or "num_batches" in n for n in changed)


def test_features_that_cannot_change_are_told():
    cfg_from_list(["DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True", "TRAIN.FREEZE_ENCODER=True", "CONTRASTIVE_LEARNING=True"])
    (sentence,) = idle_parts(cfg, build_objective(cfg, CPU))
    assert "loss_fass: moves nothing" in sentence
    cfg_from_list(["TRAIN.ADAPTER=lora"])
    assert idle_parts(cfg, build_objective(cfg, CPU)) == []


# --- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(tmp_path):
    """A file with adapters, and the network that it is of."""
    cfg_from_list(LORA)
    network = build_network(cfg, "")
    move_b(network)
    torch.save(network.state_dict(), tmp_path / "adapted.pth")
    return tmp_path / "adapted.pth", network


@pytest.mark.parametrize(
    "option, words",
    [
        ("TRAIN.LORA_RANK=2", r"have another shape.*lora_a \(4, 64\) for \(2, 64\)"),
        ("TRAIN.LORA_ALPHA=2", r"12 scale adapters otherwise.*encoder.blocks.0.attn.qkv.lora_scale 2 for 0.5"),
        ("TRAIN.LORA_LAYERS=[qkv]", "no place in the network: .*attn.proj.lora_a"),
        ("TRAIN.LORA_LAYERS=[qkv, proj, mlp]", "are missing: .*mlp.fc1.lora_a"),
    ],
)
def test_adapters_of_another_kind_are_refused_with_the_options(adapted, option, words):
    cfg_from_list([option])
    with pytest.raises(ValueError, match=rf"{words}.*set TRAIN\.LORA_RANK, TRAIN\.LORA_ALPHA and TRAIN\.LORA_LAYERS"):
        build_network(cfg, str(adapted[0]))


def test_a_network_without_adapters_takes_the_sum_and_one_with_them_goes_on_from_it(adapted, caplog):
    path, network = adapted
    caplog.set_level(logging.INFO)
    whole = build_network(cfg, str(path))
    assert same(dict(whole.state_dict()), dict(network.state_dict()))
    cfg_from_list(["TRAIN.ADAPTER="])
    plain = build_network(cfg, str(path))
    assert same(dict(plain.state_dict()), merged(network.state_dict()))
    assert "its low-rank adapters are merged into the weights" in caplog.text
    torch.save(plain.state_dict(), path)
    cfg_from_list(["TRAIN.ADAPTER=lora"])
    again = build_network(cfg, str(path))
    assert same({n: x for n, x in again.state_dict().items() if not is_adapter(n)}, dict(plain.state_dict()))


def test_adapters_start_from_an_encoders_own_weights(tmp_path):
    theirs = timm.create_model("test_vit").state_dict()
    torch.save(theirs, tmp_path / "vit.pth")
    model = build_model(VIT, K)
    model.add_low_rank(ALL, 4, 8.0)
    report = load_weights(model, tmp_path / "vit.pth")
    assert torch.equal(model.encoder.blocks[3].mlp.fc1.base, theirs["blocks.3.mlp.fc1.weight"])
    assert {name.split(".")[0] for name in report.missing} == {"finer", "decoder"}
