"""Cycles in training: association as a term of a step; closure of a network."""

import math

import pytest
import torch
from tiny import TinyNetwork, random_batch

from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.association_term import association_term, turning_confidence
from dada.domain_adaptation.contrastive_learning import Cycles, labels_at
from dada.domain_adaptation.cycle_association import cycle_association_loss, find_cycles
from dada.domain_adaptation.objectives import build_objective
from dada.domain_adaptation.step import Step
from dada.evaluation.cycle_closure import cycle_closure

CPU = torch.device("cpu")
K = 4


# ---- association as a term -----------------------------------------------------------------------


def step_of():
    """Two images of each domain, of unequal sizes, a part of the labels ignored; in float64."""
    source, target = random_batch(2, (20, 28), num_classes=K, seed=1), random_batch(2, (24, 32), seed=51, labelled=False)
    source.label[:, :6] = 255
    source, target = (b._replace(image=b.image.double(), view=b.view.double()) for b in (source, target))
    torch.manual_seed(0)
    return Step(TinyNetwork(K).double(), source, target)


def maps(step, level):
    sides = step.source_outputs, step.target_outputs
    if level == "fass":
        return [o.features for o in sides]
    return [o.logits.softmax(1) for o in sides]


LEVELS = pytest.mark.parametrize("level, metric", [("fass", "cos"), ("cass", "kl")])


@LEVELS
@pytest.mark.parametrize("aggregate", [False, True])
def test_the_term_is_the_published_loss_between_the_images_of_the_step(level, metric, aggregate):
    step = step_of()
    source, target = maps(step, level)
    labels = labels_at(step.source.label, source.shape[-2:])
    options = {"aggregate": aggregate, "alpha": 0.4}
    want = cycle_association_loss(source, target, labels, metric=metric, **options)
    loss, notes = association_term(level, K, **options)(step)
    torch.testing.assert_close(loss, want.loss)
    assert notes.scalars[f"{level}/closed"] == want.closed / want.labelled
    assert notes.scalars[f"{level}/covered"] == want.covered / want.closed
    closed, there = want.cycles.closed, want.cycles.target_index
    probabilities = step.target_outputs.logits.softmax(1).flatten(2)
    sure = [probabilities[b, labels.flatten(1)[b, i], there[b, i]] for b, i in closed.nonzero().tolist()]
    torch.testing.assert_close(notes.scalars[f"{level}/confidence"], torch.stack(sure).mean())


def test_confidence_is_the_probability_of_the_cycles_class_where_it_turns_around():
    cycles = Cycles(torch.tensor([[1, 0, 2, 1]]), torch.tensor([[0, 1, 2, 3]]), torch.tensor([[True, True, True, False]]))
    probabilities = torch.tensor([[[0.9, 0.4, 0.2], [0.1, 0.6, 0.8]]])[:, :, None]  # (1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, 1, 255]]])
    confidence = turning_confidence(cycles, labels.flatten(1), probabilities)
    torch.testing.assert_close(confidence, torch.tensor([[0.4, 0.1, 0.8, 0.0]]))


def test_rates_of_each_class_are_those_of_its_pixels():
    step = step_of()
    notes = association_term("fass", K, aggregate=True, alpha=0.5)(step).notes
    source, target = maps(step, "fass")
    labels = labels_at(step.source.label, source.shape[-2:])
    cycles = find_cycles(source, target, labels)
    for k in range(K):
        mine = labels.flatten(1) == k
        torch.testing.assert_close(notes.by_class["fass/closed"][k], cycles.closed[mine].double().mean())
    step = step_of()
    step.source.label[step.source.label == 2] = 1
    notes = association_term("fass", K, aggregate=True, alpha=0.5)(step).notes
    assert notes.by_class["fass/closed"].isnan().tolist() == [False, False, True, False]


def test_unequal_batches_cannot_be_paired():
    cfg_from_list(["CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=2"])
    with pytest.raises(ValueError, match="TRAIN.BATCH_SIZE_SOURCE 2 and TRAIN.BATCH_SIZE_TARGET 1 must be equal"):
        build_objective(cfg, CPU)
    cfg_from_list(["TRAIN.LAMBDA_CONTRASTIVE_MAIN=0"])
    build_objective(cfg, CPU)


# ---- closure -------------------------------------------------------------------------------------


def test_closure_counts_cycles_over_all_pairs_and_leaves_the_network_as_it_is():
    network = TinyNetwork(K)
    network.train()
    pairs = [(random_batch(2, num_classes=K, seed=n), random_batch(2, seed=n + 9, labelled=False)) for n in range(2)]
    closure = cycle_closure(network, pairs, 6)
    assert network.training
    closed, labelled = torch.zeros(6), torch.zeros(6)
    for source, target in pairs:
        x, y = (network(b.image).features for b in (source, target))
        labels = labels_at(source.label, x.shape[-2:])
        found = find_cycles(x, y, labels).closed
        for k in range(K):
            closed[k] += (found & (labels.flatten(1) == k)).sum()
            labelled[k] += (labels == k).sum()
    assert closure.closed == pytest.approx((closed.sum() / labelled.sum()).item())
    torch.testing.assert_close(closure.by_class[:K].float(), (closed / labelled)[:K])
    assert closure.by_class[K:].isnan().all()
    assert closure.balanced == pytest.approx((closed / labelled)[:K].mean().item())
    assert 0 < closure.covered <= 1 and math.isnan(closure.correct)


def test_closed_cycles_are_correct_where_the_target_has_the_class_of_their_start():
    network = TinyNetwork(K).eval()
    pairs = [(random_batch(2, num_classes=K, seed=n), random_batch(2, num_classes=K, seed=n + 9)) for n in range(2)]
    right = closed = 0
    for source, target in pairs:
        x, y = (network(b.image).features for b in (source, target))
        labels, truth = (labels_at(b.label, x.shape[-2:]).flatten(1) for b in (source, target))
        cycles = find_cycles(x, y, labels_at(source.label, x.shape[-2:]))
        for b, s in cycles.closed.nonzero().tolist():
            there = truth[b, cycles.target_index[b, s]]
            closed += bool(there != 255)
            right += bool(there == labels[b, s])
    assert 0 < right < closed
    assert cycle_closure(network, pairs, K, with_truth=True).correct == pytest.approx(right / closed)


def test_a_target_that_has_collapsed_closes_the_cycles_of_one_class_alone():
    class Collapsed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = TinyNetwork(K)

        def forward(self, image):
            outputs = self.network(image)
            return outputs if image.shape[-1] == 40 else outputs._replace(features=outputs.features * 0 + 1)

    pairs = [(random_batch(1, num_classes=K, seed=1), random_batch(1, (32, 48), seed=2, labelled=False))]
    closure = cycle_closure(Collapsed(), pairs, K)
    # Not quite all of them: a pixel whose features are all zero starts no cycle.
    assert sorted(closure.by_class.tolist()) == [0, 0, 0, pytest.approx(1, abs=0.1)] and closure.balanced < 1.001 / K
    with pytest.raises(ValueError, match="at least one pair"):
        cycle_closure(Collapsed(), [], K)
