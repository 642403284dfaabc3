"""The whole objective of PLCA, term by term and summed, against arrays computed by the published code."""

import pytest
import torch
from golden_cases import Case, assert_close_relative, golden_cases

from dada.config import cfg, cfg_from_list
from dada.dataset import Batch
from dada.domain_adaptation.contrastive_learning import labels_at
from dada.domain_adaptation.objectives import build_objective
from dada.domain_adaptation.step import Step
from dada.model.outputs import Outputs

CASES = golden_cases("plca_total_objective.npz")
INPUTS = ("feats_S", "preds_S", "feats_T", "preds_T")
# Our terms by the published names; the cross-entropy of the release is the sum of the last two.
TERMS = {
    "loss_fass": "association",
    "loss_cass": "association_cls",
    "loss_lsr_src": "lsr_S",
    "loss_lsr_trg": "lsr_T",
    "loss_seg_src_main": "cross_entropy",
    "loss_lovasz": "lovasz",
}


def run(case: Case, dtype: torch.dtype):
    """Values by term, their weighted sum and the gradients of the sum at the four inputs."""
    s = case.settings
    cfg_from_list(
        [
            "CONTRASTIVE_LEARNING=True",
            "ALIGN_CORNERS=False",
            "TRAIN.LAMBDA_CONSISTENCY=0",
            "TRAIN.LAMBDA_ENTROPY=0",
            f"TRAIN.LAMBDA_CONTRASTIVE_MAIN={s['assoc_weight']}",
            f"TRAIN.APPLY_MULTILAYER_ASSOCIATION={s['multilayer']}",
            f"TRAIN.APPLY_SPAGG={s['spagg']}",
            f"TRAIN.SPAGG_ALPHA={s['spagg_alpha']}",
            f"TRAIN.LSR_W={s['lsr_weight']}",
            f"TRAIN.LSR_THRES={s['lsr_threshold']}",
            # The release multiplies its Lovasz weight by these before it averages over both.
            f"TRAIN.LAMBDA_LOVASZ={s['lovasz_weight'] * s['world_size'] * s['iter_size']}",
        ]
    )
    given = {name: case.tensor(name, dtype).requires_grad_() for name in INPUTS}
    images = {domain: torch.zeros(*case.arrays[f"gt_{domain}"].shape)[:, None].expand(-1, 3, -1, -1) for domain in "ST"}
    images["T"] = images["T"] + 1

    def network(image):
        domain = "T" if image.any() else "S"
        return Outputs(given[f"preds_{domain}"], given[f"feats_{domain}"])

    batches = [Batch(images[d], case.tensor(f"gt_{d}"), None, [], []) for d in "ST"]
    objective = build_objective(cfg, torch.device("cpu"))
    losses = objective(Step(network, *batches, align_corners=cfg.ALIGN_CORNERS), 0)
    losses.total.backward()
    return {name: value for name, (_, value) in losses.terms.items()}, losses.total, {n: x.grad for n, x in given.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_terms_total_and_gradients_in_float64(case):
    values, total, gradients = run(case, torch.float64)
    assert set(values) == set(TERMS)
    for name, published in TERMS.items():
        assert_close_relative(values[name], case.tensor(published), 1e-9)
    assert_close_relative(total, case.tensor("total"), 1e-9)
    for name, gradient in gradients.items():
        # Where all features are zero the release divides by 1e-12, which gives gradients of 1e18; ours are finite.
        directed = case.tensor(name).any(dim=1, keepdim=True).expand_as(gradient)
        assert_close_relative(gradient[directed], case.tensor(f"grad_{name}")[directed], 1e-9)
        assert gradient.abs().max() < 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_total_in_float32(case):
    _, total, _ = run(case, torch.float32)
    assert_close_relative(total, case.tensor("f32_total"), 1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_labels_at_feature_size(case):
    small = labels_at(case.tensor("gt_S"), case.arrays["feats_S"].shape[-2:])
    assert torch.equal(small, case.tensor("gt_S_small").long())
