"""Every method, alone, with association and with the auxiliary head, on real networks: a step teaches all of them."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from tiny import TINY_NETWORK, TinyNetwork, random_batch

from dada.config import cfg, cfg_from_file, cfg_from_list
from dada.domain_adaptation import losses
from dada.domain_adaptation.objectives import METHODS, build_objective
from dada.domain_adaptation.step import Step
from dada.model import build_model
from dada.training.idle import idle_parts
from dada.training.trainer import Trainer, build_optimizer

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SIDE = (64, 64)


def pair(seed=1, num_classes=16):
    return random_batch(2, SIDE, num_classes, seed), random_batch(2, SIDE, num_classes, seed + 1, labelled=False)


@functools.cache
def network_of(name, multi_level, with_depth):
    return build_model(name, 16, multi_level=multi_level, with_depth=with_depth)


def trained_once(*pairs):
    """A trainer after one iteration on real networks, and the values that it reported."""
    cfg_from_list([f"TRAIN.MODEL={TINY_NETWORK}", "TRAIN.LAMBDA_LOVASZ=0.75", *pairs])
    network = copy.deepcopy(network_of(cfg.TRAIN.MODEL, cfg.TRAIN.MULTI_LEVEL, cfg.USE_DEPTH)).train()
    trainer = Trainer(network, build_objective(cfg, CPU), build_optimizer(network, cfg), max_iterations=10)
    values = trainer.iterate(0, iter([pair()])).values
    return trainer, values


@pytest.mark.parametrize("multi_level", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("association", [False, True], ids=["alone", "association"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method_gives_every_parameter_a_gradient(method, association, multi_level):
    trainer, values = trained_once(
        f"TRAIN.DA_METHOD={method}",
        f"CONTRASTIVE_LEARNING={association}",
        f"TRAIN.MULTI_LEVEL={multi_level}",
        f"USE_DEPTH={method == 'DADA'}",
        "TRAIN.LAMBDA_CONSISTENCY=1",
    )
    assert all(torch.tensor(value).isfinite() for value in values.values())
    modules = [trainer.network, *(a.discriminator for a in trainer.objective.adversaries)]
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_depth_and_association_combine_on_a_resnet_too():
    trainer, values = trained_once(
        "TRAIN.MODEL=resnet-18", "TRAIN.DA_METHOD=DADA", "USE_DEPTH=True", "CONTRASTIVE_LEARNING=True", "TRAIN.MULTI_LEVEL=True"
    )
    assert {"loss_depth_src_main", "loss_fass", "loss_cass", "loss_adv_trg_main", "loss_seg_src_aux"} < set(values)
    assert all(p.grad is not None for p in trainer.network.parameters())


def test_association_compares_the_maps_that_depth_was_fused_into():
    trainer, _ = trained_once("TRAIN.DA_METHOD=DADA", "USE_DEPTH=True", "CONTRASTIVE_LEARNING=True")
    fass = next(t for t in trainer.objective.terms if t.name == "loss_fass")
    trainer.network.zero_grad()
    fass.compute(Step(trainer.network, *pair())).loss.backward()
    assert all(conv.weight.grad.abs().sum() > 0 for conv in trainer.network.depth_modules())


# --- adversaries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["AdvEnt", "DADA", "PLCA_adv"])
def test_without_weight_for_the_game_there_is_no_discriminator_to_train(method):
    cfg_from_list([f"TRAIN.DA_METHOD={method}", "TRAIN.LAMBDA_ADV_MAIN=0", "TRAIN.MULTI_LEVEL=True"])
    objective = build_objective(cfg, CPU)
    assert [a.name for a in objective.adversaries] == (["aux"] if method == "AdvEnt" else [])
    assert objective.uses_target == (method == "AdvEnt")


def test_plcas_adversary_sees_the_class_probabilities_at_image_size():
    cfg_from_list(["TRAIN.DA_METHOD=PLCA_adv"])
    (adversary,) = build_objective(cfg, CPU).adversaries
    assert adversary.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    seen = []
    adversary.discriminator.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    step = Step(TinyNetwork(16), *pair())
    adversary.fool(step)
    upsampled = torch.nn.functional.interpolate(step.target_outputs.logits, SIDE, mode="bilinear", align_corners=True)
    torch.testing.assert_close(seen[0], upsampled.softmax(dim=1))
    halves = adversary.learn(step)  # the mean over both domains, as PLCA takes it over their concatenation
    answers = torch.cat([adversary.discriminator(seen[k]) for k in (1, 2)])
    truth = torch.cat([torch.zeros_like(answers[:2]), torch.ones_like(answers[2:])])
    both = torch.nn.functional.binary_cross_entropy_with_logits(answers, truth)
    torch.testing.assert_close(sum(halves.values()), both.detach())


# --- DADA without depth, and depth that was not measured ---------------------------------------------------


def test_dada_without_depth_runs_on_plain_entropy_maps_and_says_so():
    cfg_from_list(["TRAIN.DA_METHOD=DADA", "USE_DEPTH=False"])
    objective = build_objective(cfg, CPU)
    assert "USE_DEPTH False: there is no depth loss" in idle_parts(cfg, objective)[0]
    assert [t.name for t in objective.terms] == ["loss_seg_src_main", "loss_adv_trg_main"]
    (adversary,) = objective.adversaries
    seen = []
    adversary.discriminator.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    step = Step(TinyNetwork(16), *pair())
    adversary.fool(step)
    p = step.upsample(step.target_outputs.logits, step.target.image).softmax(dim=1)
    torch.testing.assert_close(seen[0], losses.entropy_map(p))


@pytest.mark.parametrize("unmasked", [False, True])
def test_the_sky_and_missing_depth_are_learnt_only_when_the_published_form_is_asked_for(unmasked):
    cfg_from_list(["USE_DEPTH=True", f"LEGACY.UNMASKED_DEPTH={unmasked}"])
    compute = next(t for t in build_objective(cfg, CPU).terms if t.name == "loss_depth_src_main").compute
    network = TinyNetwork(16, depth=True)
    source, target = pair()
    void = torch.zeros_like(source.depth, dtype=torch.bool)
    void[:, :16] = True
    found = []
    for value in (1.0, 65536.0, 0.0):  # sky, no measurement, padding around a crop
        step = Step(network, source._replace(depth=source.depth.masked_fill(void, value)), target)
        found.append(compute(step).item())
    expected = losses.berhu(step.upsample(step.source_outputs.depth, source.depth), source.depth, ~void).item()
    assert (found == pytest.approx([expected] * 3, rel=1e-6)) == (not unmasked)


def test_an_image_without_any_measured_depth_costs_nothing_and_teaches_nothing():
    cfg_from_list(["USE_DEPTH=True"])
    compute = next(t for t in build_objective(cfg, CPU).terms if t.name == "loss_depth_src_main").compute
    source, target = pair()
    step = Step(TinyNetwork(16, depth=True), source._replace(depth=torch.ones_like(source.depth)), target)
    loss = compute(step)
    loss.backward()
    assert loss == 0


# --- shipped configurations --------------------------------------------------------------------------------

SEGMENTATION = {"loss_seg_src_main": 1.0}
PLCA = {"loss_lovasz": 3.0, "loss_fass": 0.1, "loss_cass": 0.1, "loss_lsr_src": 0.01, "loss_lsr_trg": 0.01}
DADA = {"loss_depth_src_main": 0.001, "loss_adv_trg_main": 0.001}
AUX = {"loss_seg_src_aux": 0.1}
OURS = {**PLCA, "loss_lovasz": 0.75, "loss_consistency": 0.3, "loss_entropy": 0.01}
PUBLISHED = {
    "gta2cityscapes_minent": {**AUX, "loss_ent_main": 0.001, "loss_ent_aux": 0.0002},
    "gta2cityscapes_advent": {**AUX, "loss_adv_trg_main": 0.001, "loss_adv_trg_aux": 0.0002},
    "gta2cityscapes_plca": PLCA,
    "synthia2cityscapes": PLCA,
    "synthia2cityscapes_source_only": {"loss_lovasz": 3.0},
    "synthia2cityscapes_minent": {**AUX, "loss_ent_main": 0.001, "loss_ent_aux": 0.0002},
    "synthia2cityscapes_advent": {"loss_adv_trg_main": 0.001},
    "synthia2cityscapes_dada": DADA,
    "synthia2cityscapes_dada_plca": {**PLCA, **DADA},
    "synthia2mapillary_advent": {"loss_adv_trg_main": 0.001},
    "synthia2mapillary_dada": DADA,
    "toycity": OURS,
    "camvid_day2dusk": OURS,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_minimises_what_it_is_named_after_at_the_published_weights(name):
    cfg_from_file(f"{name}.yml")
    objective = build_objective(cfg, CPU)
    assert {t.name: t.weight for t in objective.terms} == {**SEGMENTATION, **PUBLISHED[name]}
    if PUBLISHED[name] is not OURS:  # published methods leave the source as it is
        assert objective.style is None


# The overrides of docs/methods.md, which are the same for the toy city and CamVid.
OVERRIDES = {
    "source_only": (["CONTRASTIVE_LEARNING=False", "TRAIN.LAMBDA_LOVASZ=0"], {}),
    "lovasz": (["CONTRASTIVE_LEARNING=False"], {"loss_lovasz": 0.75}),
    "minent": (["CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=MinEnt"], {"loss_lovasz": 0.75, "loss_ent_main": 0.001}),
    "advent": (["CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=AdvEnt"], {"loss_lovasz": 0.75, "loss_adv_trg_main": 0.001}),
    "dada": (["CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=DADA", "USE_DEPTH=True"], {"loss_lovasz": 0.75, **DADA}),
    "plca": (
        ["TRAIN.COLOR_TRANSFER=False", "TRAIN.LAMBDA_CONSISTENCY=0", "TRAIN.LAMBDA_ENTROPY=0"],
        {**PLCA, "loss_lovasz": 0.75},
    ),
    "ours": ([], OURS),
}


@pytest.mark.parametrize("method", OVERRIDES)
@pytest.mark.parametrize("name", ["toycity", "camvid_day2dusk"])
def test_the_documented_overrides_turn_the_small_benchmarks_into_each_method(name, method):
    overrides, terms = OVERRIDES[method]
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert " ".join(overrides) in text
    cfg_from_file(f"{name}.yml")
    cfg_from_list(overrides)
    objective = build_objective(cfg, CPU)
    assert {t.name: t.weight for t in objective.terms} == {**SEGMENTATION, **terms}
