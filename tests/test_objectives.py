"""What a step computes and hides, and which terms each cfg stands for."""

import pytest
import torch
from tiny import TinyNetwork, random_batch

from dada.config import cfg, cfg_from_list
from dada.domain_adaptation import losses
from dada.domain_adaptation.objectives import METHODS, Objective, Term, build_objective
from dada.domain_adaptation.step import Notes, Step, TermValue

CPU = torch.device("cpu")
ON_VIEWS = {"loss_consistency", "loss_entropy"}
BY_THE_FLAG = {"loss_fass", "loss_cass", "loss_lsr_src", "loss_lsr_trg", *ON_VIEWS}


class Counting(torch.nn.Module):
    """A network that keeps every image it is shown."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network or TinyNetwork(5, aux=True, depth=True)
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        return self.network(image)


def step_of(network=None, **options) -> Step:
    return Step(network or Counting(), random_batch(seed=1), random_batch(seed=2), **options)


def build(*pairs: str) -> Objective:
    cfg_from_list(pairs)
    return build_objective(cfg, CPU)


def terms(*pairs: str) -> dict[str, Term]:
    objective = build(*pairs)
    assert len({t.name for t in objective.terms}) == len(objective.terms)
    return {t.name: t for t in objective.terms}


# --- Step --------------------------------------------------------------------------------------------------


def test_a_step_runs_the_network_when_an_output_is_first_asked_for_and_only_then():
    network = Counting()
    step = step_of(network)
    assert network.seen == []
    first = step.source_outputs
    assert step.source_outputs is first and step.source_logits is step.source_logits
    assert len(network.seen) == 1 and network.seen[0] is step.source.image


def test_source_target_and_view_run_through_the_network_apart_and_what_learns_is_the_view():
    network = Counting()
    step = step_of(network)
    outputs = step.source_outputs, step.first_view_outputs, step.target_outputs
    assert [id(x) for x in network.seen] == [id(step.source.image), id(step.target.image), id(step.target.view)]
    assert [o.logits.requires_grad for o in outputs] == [True, False, True]


def test_without_a_second_view_the_target_images_themselves_are_learnt_from():
    network = Counting()
    step = step_of(network)
    step.target = step.target._replace(view=None)
    assert step.target_outputs.logits.requires_grad and network.seen[0] is step.target.image
    with pytest.raises(ValueError, match="a term of the objective needs a second view, which this step was not given"):
        _ = step.first_view_outputs


def test_terms_cannot_see_the_targets_label_or_depth():
    target = random_batch(seed=2)
    assert target.label is not None and target.depth is not None
    step = Step(Counting(), random_batch(seed=1), target)
    assert step.target.label is None and step.target.depth is None
    assert step.target.image is target.image and step.target.name == target.name


def test_no_term_changes_with_the_targets_label_and_depth():
    network = TinyNetwork(16, aux=True, depth=True)
    objective = build(
        "CONTRASTIVE_LEARNING=True",
        "TRAIN.DA_METHOD=AdvEnt",
        "TRAIN.MULTI_LEVEL=True",
        "TRAIN.LAMBDA_CONSISTENCY=1",
        "TRAIN.LAMBDA_LOVASZ=1",
    )
    target = random_batch(seed=2)
    other = target._replace(label=(target.label + 1) % 5, depth=target.depth + 1)
    results = [objective(Step(network, random_batch(seed=1), t), 0) for t in (target, other)]
    assert {n: v.item() for n, (_, v) in results[0].terms.items()} == {n: v.item() for n, (_, v) in results[1].terms.items()}


@pytest.mark.parametrize("align_corners", [True, False])
def test_logits_are_upsampled_to_the_label_as_align_corners_says(align_corners):
    step = step_of(align_corners=align_corners)
    expected = torch.nn.functional.interpolate(
        step.source_outputs.logits, size=(32, 40), mode="bilinear", align_corners=align_corners
    )
    assert torch.equal(step.source_logits, expected)


def test_autocast_runs_the_network_in_bfloat16_and_hands_on_float32():
    seen = []

    def network(image):
        outputs = TinyNetwork(5)(image)
        seen.append(outputs.logits.dtype)
        return outputs

    step = Step(network, random_batch(seed=1), random_batch(seed=2), autocast=True)
    assert step.source_outputs.logits.dtype == step.target_outputs.features.dtype == torch.float32
    assert seen == [torch.bfloat16] * 2
    assert step.source_outputs.aux_logits is None


# --- which terms ---------------------------------------------------------------------------------------------


METHOD_TERMS = {
    "source_only": set(),
    "MinEnt": {"loss_ent_main"},
    "AdvEnt": {"loss_adv_trg_main"},
    "DADA": {"loss_adv_trg_main", "loss_depth_src_main"},
    "PLCA_adv": {"loss_adv_trg_main"},
}
NEEDS = {"DADA": ["USE_DEPTH=True"]}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_source_loss_and_its_own_terms(method):
    assert set(terms(f"TRAIN.DA_METHOD={method}", *NEEDS.get(method, []))) == {"loss_seg_src_main", *METHOD_TERMS[method]}


@pytest.mark.parametrize("method", METHODS)
def test_contrastive_learning_adds_its_terms_to_every_method_and_none_twice(method):
    options = [f"TRAIN.DA_METHOD={method}", *NEEDS.get(method, [])]
    without = set(terms(*options))
    assert set(terms(*options, "CONTRASTIVE_LEARNING=True")) == without | BY_THE_FLAG


def test_multi_level_adds_the_auxiliary_term_of_each_method():
    assert "loss_seg_src_aux" in terms("TRAIN.MULTI_LEVEL=True")
    assert "loss_ent_aux" in terms("TRAIN.DA_METHOD=MinEnt")
    objective = build("TRAIN.DA_METHOD=AdvEnt")
    assert "loss_adv_trg_aux" in {t.name for t in objective.terms}
    assert [a.name for a in objective.adversaries] == ["main", "aux"]


def test_without_multilayer_association_only_features_are_associated():
    names = set(terms("CONTRASTIVE_LEARNING=True", "TRAIN.APPLY_MULTILAYER_ASSOCIATION=False"))
    assert names == {"loss_seg_src_main", "loss_fass", *ON_VIEWS}


def test_the_flag_means_association_consistency_and_entropy():
    assert set(terms("CONTRASTIVE_LEARNING=True")) == {"loss_seg_src_main", *BY_THE_FLAG}
    assert set(terms("CONTRASTIVE_LEARNING=False")) == {"loss_seg_src_main"}


def test_source_images_are_coloured_by_the_flag_and_by_the_switch():
    assert build("CONTRASTIVE_LEARNING=True").style is not None
    assert build("CONTRASTIVE_LEARNING=False").style is None
    assert build("CONTRASTIVE_LEARNING=True", "TRAIN.COLOR_TRANSFER=False").style is None


def test_a_term_of_weight_zero_is_left_out_and_not_computed():
    names = set(terms("CONTRASTIVE_LEARNING=True", "TRAIN.LSR_W=0"))
    assert names == {"loss_seg_src_main", "loss_fass", "loss_cass", *ON_VIEWS}  # Lovasz is 0 by default


def test_weights_come_from_the_cfg():
    weights = {
        "TRAIN.LAMBDA_SEG_MAIN": ("loss_seg_src_main", 0.9),
        "TRAIN.LAMBDA_LOVASZ": ("loss_lovasz", 0.75),
        "TRAIN.LAMBDA_SEG_AUX": ("loss_seg_src_aux", 0.11),
        "TRAIN.LAMBDA_ENT_MAIN": ("loss_ent_main", 0.002),
        "TRAIN.LAMBDA_ENT_AUX": ("loss_ent_aux", 0.003),
        "TRAIN.LAMBDA_CONTRASTIVE_MAIN": ("loss_fass", 0.2),
        "TRAIN.LAMBDA_CONSISTENCY": ("loss_consistency", 0.6),
        "TRAIN.LAMBDA_ENTROPY": ("loss_entropy", 0.004),
        "TRAIN.LSR_W": ("loss_lsr_trg", 0.05),
    }
    found = terms(
        "TRAIN.DA_METHOD=MinEnt",
        "TRAIN.MULTI_LEVEL=True",
        "CONTRASTIVE_LEARNING=True",
        *(f"{key}={weight}" for key, (_, weight) in weights.items()),
    )
    for name, weight in weights.values():
        assert found[name].weight == weight, name
    assert found["loss_cass"].weight == 0.2 and found["loss_lsr_src"].weight == 0.05


def test_the_terms_of_contrastive_learning_start_at_contrastive_start_and_the_others_at_once():
    objective = build("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=7", "TRAIN.DA_METHOD=MinEnt")
    at = {k: {t.name for t in objective.active(k)} for k in (0, 6, 7)}
    assert at[0] == at[6] == {"loss_seg_src_main", "loss_ent_main"}
    assert at[7] == at[0] | BY_THE_FLAG


def test_a_term_that_has_not_started_runs_no_network_on_the_target():
    objective = build("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=1", "NUM_CLASSES=16")
    network = Counting(TinyNetwork(16))
    objective(step_of(network), 0)
    assert len(network.seen) == 1


def test_only_source_terms_need_no_target():
    assert not build("TRAIN.LAMBDA_LOVASZ=1").uses_target
    assert not build("USE_DEPTH=True").uses_target
    assert build("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=10").uses_target
    assert build("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=MinEnt").uses_target


def test_source_terms_compute_on_a_step_without_target():
    objective = build("TRAIN.LAMBDA_LOVASZ=1")
    found = objective(Step(TinyNetwork(16), random_batch(), None), 0).terms
    assert {name: value.isfinite().item() for name, (_, value) in found.items()} == {
        "loss_seg_src_main": True,
        "loss_lovasz": True,
    }


def test_a_term_returns_its_loss_or_its_loss_with_notes_and_those_of_all_terms_are_joined():
    rate = torch.tensor([0.5, 0.25])
    answers = {
        "plain": torch.tensor(1.0),
        "first": TermValue(torch.tensor(2.0), Notes({"share": torch.tensor(0.5)}, by_class={"rate": rate})),
        "second": TermValue(torch.tensor(3.0), Notes({"other": torch.tensor(0.1)}, pictures={"mixed": torch.ones(1, 3, 2, 2)})),
    }
    objective = Objective([Term(name, 2.0, lambda step, x=x: x) for name, x in answers.items()], [])
    found = objective(step_of(), 0)
    assert {name: (weight, value.item()) for name, (weight, value) in found.terms.items()} == {
        "plain": (2.0, 1.0),
        "first": (2.0, 2.0),
        "second": (2.0, 3.0),
    }
    assert found.total.item() == 12
    assert set(found.notes.scalars) == {"share", "other"} and found.notes.by_class == {"rate": rate}
    assert set(found.notes.pictures) == {"mixed"} and not found.notes.cycles


# --- what terms compute --------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_target_prediction_at_image_size():
    step = step_of()
    step.target = step.target._replace(image=torch.randn(2, 3, 48, 36))
    value = terms("TRAIN.DA_METHOD=MinEnt")["loss_ent_main"].compute(step)
    p = torch.nn.functional.interpolate(step.target_outputs.logits, (48, 36), mode="bilinear", align_corners=True).softmax(1)
    by_hand = -(p * p.log2()).sum(1).mean() / torch.log2(torch.tensor(5.0))
    torch.testing.assert_close(value, by_hand)


def test_consistency_teaches_the_second_view_with_the_first_and_notes_its_confident_share():
    step = step_of()
    threshold = step.first_view_outputs.logits.softmax(1).amax(1).median().item()
    found = terms("CONTRASTIVE_LEARNING=True", "TRAIN.LAMBDA_CONSISTENCY=1", f"TRAIN.CONSISTENCY_THRESHOLD={threshold}")
    value, notes = found["loss_consistency"].compute(step)
    confidence, pseudo = step.first_view_outputs.logits.softmax(1).max(1)
    nll = -step.target_outputs.logits.log_softmax(1).gather(1, pseudo[:, None])[:, 0]
    torch.testing.assert_close(value, (nll * (confidence >= threshold)).sum() / nll.numel())
    torch.testing.assert_close(notes.scalars["target/confident"], (confidence >= threshold).float().mean())


def test_class_association_averages_a_finer_prediction_to_the_size_of_the_features():
    fine, coarse = TinyNetwork(16), torch.nn.AvgPool2d(2)

    def network(image):
        outputs = fine(image)
        return outputs._replace(features=coarse(outputs.features))

    step = step_of(network)
    cass = terms("CONTRASTIVE_LEARNING=True")["loss_cass"].compute(step).loss
    pooled = step_of(lambda image: outputs_with_pooled_probabilities(network(image), coarse))
    torch.testing.assert_close(cass, terms()["loss_cass"].compute(pooled).loss, rtol=1e-4, atol=0)


def outputs_with_pooled_probabilities(outputs, pool):
    return outputs._replace(logits=pool(outputs.logits.softmax(1)).log())


def test_association_notes_how_many_cycles_close_and_how_much_of_the_target_they_cover():
    step = step_of()
    notes = terms("CONTRASTIVE_LEARNING=True")["loss_fass"].compute(step).notes.scalars
    assert {"fass/closed", "fass/covered", "fass/confidence"} == set(notes)
    assert all(0 < note <= 1 for note in notes.values())


def test_depth_is_learnt_on_the_source_by_reverse_huber():
    step = step_of()
    found = terms("USE_DEPTH=True")
    predicted = torch.nn.functional.interpolate(step.source_outputs.depth, (32, 40), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found["loss_depth_src_main"].compute(step), losses.berhu(predicted, step.source.depth))


# --- the discriminator ---------------------------------------------------------------------------------------


def test_fooling_moves_the_network_and_learning_moves_the_discriminator():
    network = TinyNetwork(16)
    objective = build("TRAIN.DA_METHOD=AdvEnt")
    (adversary,) = objective.adversaries
    step = Step(network, random_batch(size=(40, 40), seed=1), random_batch(size=(40, 40), seed=2))
    adversary.fool(step).backward(retain_graph=True)
    assert all(p.grad is None for p in adversary.discriminator.parameters())
    assert network.stem.weight.grad.abs().sum() > 0
    before = network.stem.weight.grad.clone()
    halves = adversary.learn(step)
    assert set(halves) == {"loss_d_src_main", "loss_d_trg_main"}
    assert all(p.grad is not None and p.requires_grad for p in adversary.discriminator.parameters())
    assert torch.equal(network.stem.weight.grad, before)


# --- refusals ------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="TRAIN.DA_METHOD 'CORAL' is not one of source_only, MinEnt, AdvEnt, DADA, PLCA_adv"):
        build("TRAIN.DA_METHOD=CORAL")


def test_association_of_unequal_batches_is_refused():
    with pytest.raises(ValueError, match="TRAIN.BATCH_SIZE_SOURCE 2 and TRAIN.BATCH_SIZE_TARGET 1 must be equal"):
        build("CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=2")
    build("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=MinEnt")  # without association they may differ


def test_an_objective_with_nothing_to_minimise_is_refused():
    with pytest.raises(ValueError, match="no loss term.*iteration 0"):
        build("TRAIN.LAMBDA_SEG_MAIN=0")
    with pytest.raises(ValueError, match="no loss term.*TRAIN.CONTRASTIVE_START"):
        build("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=5")
