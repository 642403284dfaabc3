"""The training loop against runs of the published ones (ADVENT: AdvEnt and MinEnt; DADA): losses and final weights.

The published loops back-propagate term by term, ours once through the weighted sum. In float64 the two differ by less
than 1e-9.
"""

import pytest
import torch
from golden_cases import Case, assert_close_relative, golden_cases, golden_recipe
from tiny import TinyNetwork

from dada.config import cfg, cfg_from_list
from dada.dataset import Batch
from dada.domain_adaptation.objectives import build_objective
from dada.training.trainer import Trainer, build_optimizer

CASES = golden_cases("advent_training.npz")
METHODS = {"advent_multi": "AdvEnt", "advent_single": "AdvEnt", "minent": "MinEnt", "dada": "DADA"}


def ours(published: str) -> str:
    """Our name of a published loss. The loops print the target half of the discriminator's loss."""
    return published.replace("loss_d_", "loss_d_trg_")


def has(case: Case, part: str) -> bool:
    return any(name.startswith(f"final/{part}") for name in case.arrays)


def build(case: Case, dtype: torch.dtype) -> Trainer:
    s = case.settings
    depth = has(case, "head_depth")
    cfg_from_list(
        [
            f"TRAIN.DA_METHOD={METHODS[s['method']]}",
            f"NUM_CLASSES={16}",
            f"USE_DEPTH={depth}",
            f"TRAIN.MODEL={'DeepLabv2_depth' if depth else 'DeepLabv2'}",
            f"TRAIN.MULTI_LEVEL={has(case, 'head_aux')}",
            f"TRAIN.LAMBDA_SEG_MAIN={s['lambda_seg_main']}",
            f"TRAIN.LAMBDA_SEG_AUX={s['lambda_seg_aux']}",
            f"TRAIN.LAMBDA_ADV_MAIN={s['adv'][0]}",
            f"TRAIN.LAMBDA_ADV_AUX={s['adv'][1]}",
            f"TRAIN.LAMBDA_ENT_MAIN={s['adv'][0]}",
            f"TRAIN.LAMBDA_ENT_AUX={s['adv'][1]}",
            f"TRAIN.LAMBDA_DEPTH_MAIN={s['depth_w']}",
            f"TRAIN.LEARNING_RATE={s['lr']}",
            f"TRAIN.LEARNING_RATE_D={s['lr_d']}",
            f"TRAIN.MOMENTUM={s['momentum']}",
            f"TRAIN.WEIGHT_DECAY={s['weight_decay']}",
        ]
    )
    cfg.NUM_CLASSES = s["ncl"]  # no label set has so few classes; the objective needs only their number
    network = TinyNetwork(s["ncl"], aux=has(case, "head_aux"), depth=depth).to(dtype)
    objective = build_objective(cfg, torch.device("cpu"))
    load_recipe(network, "", s["salt"])
    for adversary in objective.adversaries:
        load_recipe(adversary.discriminator.to(dtype), f"d_{adversary.name}.", s["salt"])
    return Trainer(network, objective, build_optimizer(network, cfg), max_iterations=s["max_iters"], power=s["power"])


def load_recipe(module: torch.nn.Module, prefix: str, salt: int) -> None:
    state = module.state_dict()
    module.load_state_dict({name: golden_recipe(prefix + name, tuple(v.shape), salt) for name, v in state.items()})


def batches(case: Case, dtype: torch.dtype):
    s = case.settings
    for k in range(s["iters"]):
        label = case.tensor("src_labels")[k].long()
        depth = case.tensor("src_depth", dtype)[k] if "src_depth" in case.arrays else None
        source = Batch(case.tensor("src_images", dtype)[k], label, depth, [], [])
        assert tuple(source.image.shape[:1:-1]) == tuple(s["src_wh"])
        yield source, Batch(case.tensor("trg_images", dtype)[k], None, None, [], [])


def run(case: Case, dtype: torch.dtype) -> tuple[Trainer, list[dict[str, float]]]:
    trainer, steps = build(case, dtype), batches(case, dtype)
    return trainer, [trainer.iterate(k, steps)[0] for k in range(case.settings["iters"])]


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_losses_and_final_weights(case, dtype, tolerance):
    trainer, losses = run(case, dtype)
    published = [name.removeprefix("losses/") for name in case.arrays if name.startswith("losses/")]
    for name in published:
        got = torch.tensor([values.get(ours(name), 0.0) for values in losses], dtype=torch.float64)
        assert_close_relative(got, case.tensor(f"losses/{name}"), tolerance)  # a head that is not there prints 0
    weights = {name: v.detach() for name, v in trainer.network.named_parameters()}
    for name, value in weights.items():
        assert_close_relative(value, case.tensor(f"final/{name}"), tolerance)
    assert len(weights) == sum(name.startswith("final/") for name in case.arrays)
    checked = 0
    for adversary in trainer.objective.adversaries:
        for name, value in adversary.discriminator.named_parameters():
            key = f"d_{adversary.name}.{name}"
            first, total = case.tensor(f"final_first6/{key}"), case.tensor(f"final_sum/{key}")
            assert_close_relative(value.detach().flatten()[: len(first)], first, tolerance)
            # A sum of signed values may nearly cancel: what rounding does to it goes with their magnitudes.
            error = abs(value.detach().double().sum() - total)
            assert error <= tolerance * value.detach().double().abs().sum()
            checked += 1
    assert checked == sum(name.startswith("final_sum/") for name in case.arrays)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_runs_report_nothing_that_the_published_loops_do_not(case):
    _, losses = run(case, torch.float32)
    known = {ours(name.removeprefix("losses/")) for name in case.arrays if name.startswith("losses/")}
    known |= {name.replace("_trg_", "_src_") for name in known if name.startswith("loss_d_")}
    assert set(losses[0]) <= known
