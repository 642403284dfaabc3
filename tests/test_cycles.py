"""Cycles in training: association and class contrast as terms of a step, closure."""

import itertools
import math

import pytest
import torch
from tiny import TinyNetwork, random_batch, same

from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.contrastive_learning import Cycles, association_loss, cycle_association, labels_at
from dada.domain_adaptation.cycles.class_contrast import (
    ClassContrastTerm,
    ClassStatistics,
    class_contrast,
    directions,
)
from dada.domain_adaptation.cycles.closure import cycle_closure
from dada.domain_adaptation.cycles.rates import turning_confidence
from dada.domain_adaptation.cycles.term import association_term
from dada.domain_adaptation.objectives import build_objective
from dada.domain_adaptation.step import Step
from dada.domain_adaptation.trainer import Trainer, build_optimizer

CPU = torch.device("cpu")
K = 4


def with_gradients(loss_of, *maps):
    maps = [m.detach().clone().requires_grad_() for m in maps]
    loss = loss_of(*maps)
    return loss.detach(), *torch.autograd.grad(loss, maps, allow_unused=True, materialize_grads=True)


# ---- association as a term -----------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """TinyNetwork in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = TinyNetwork(K).double()

    def forward(self, image):
        return self.network(image)


def step_of(seed=1, network=None, batch=2, target_size=(24, 32), target_batch=2):
    source = random_batch(batch, (20, 28), num_classes=K, seed=seed)
    target = random_batch(target_batch, target_size, seed=seed + 50, labelled=False)
    source.label[:, :6] = 255
    source, target = (b._replace(image=b.image.double()) for b in (source, target))
    return Step(network or Fixed(), source, target)


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
    want = association_loss(source, target, labels, metric=metric, **options)
    torch.testing.assert_close(association_term(level, K, **options)(step), want.loss)
    assert step.notes[f"{level}/closed"] == want.closed / want.labelled
    assert step.notes[f"{level}/covered"] == want.covered / want.closed
    closed, there = want.cycles.closed, want.cycles.target_index
    probabilities = step.target_outputs.logits.softmax(1).flatten(2)
    sure = [probabilities[b, labels.flatten(1)[b, i], there[b, i]] for b, i in closed.nonzero().tolist()]
    torch.testing.assert_close(step.notes[f"{level}/confidence"], torch.stack(sure).mean())


def test_confidence_is_the_probability_of_the_cycles_class_where_it_turns_around():
    cycles = Cycles(torch.tensor([[1, 0, 2, 1]]), torch.tensor([[0, 1, 2, 3]]), torch.tensor([[True, True, True, False]]))
    probabilities = torch.tensor([[[0.9, 0.4, 0.2], [0.1, 0.6, 0.8]]])[:, :, None]  # (1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, 1, 255]]])
    confidence = turning_confidence(cycles, labels.flatten(1), probabilities)
    torch.testing.assert_close(confidence, torch.tensor([[0.4, 0.1, 0.8, 0.0]]))


def test_rates_of_each_class_are_those_of_its_pixels():
    step = step_of()
    association_term("fass", K, aggregate=True, alpha=0.5)(step)
    source, target = maps(step, "fass")
    labels = labels_at(step.source.label, source.shape[-2:])
    cycles = cycle_association(source, target, labels)
    for k in range(K):
        mine = labels.flatten(1) == k
        torch.testing.assert_close(step.by_class["fass/closed"][k], cycles.closed[mine].double().mean())
    step = step_of()
    step.source.label[step.source.label == 2] = 1
    association_term("fass", K, aggregate=True, alpha=0.5)(step)
    assert step.by_class["fass/closed"].isnan().tolist() == [False, False, True, False]


def test_unequal_batches_cannot_be_paired():
    cfg_from_list(["CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=2"])
    with pytest.raises(ValueError, match="TRAIN.BATCH_SIZE_SOURCE 2 and TRAIN.BATCH_SIZE_TARGET 1 must be equal"):
        build_objective(cfg, CPU)
    cfg_from_list(["TRAIN.LAMBDA_CONTRASTIVE_MAIN=0"])
    build_objective(cfg, CPU)


# ---- class distributions -------------------------------------------------------------------------


def test_distcl_is_its_formula_and_protocl_that_without_variance():
    g = torch.Generator().manual_seed(0)
    x, mean = torch.randn(7, 3, generator=g, dtype=torch.float64), torch.randn(4, 3, generator=g, dtype=torch.float64)
    variance, labels = torch.rand(4, 3, generator=g, dtype=torch.float64), torch.tensor([0, 1, 3, 255, 2, 1, 0])
    met, weights = torch.tensor([True, True, False, True]), torch.rand(7, generator=g, dtype=torch.float64)
    for v, w in itertools.product((variance, None), (weights, None)):

        def written_out(x):
            total, count = 0.0, 0.0
            for q, y, share in zip(x, labels.tolist(), torch.ones(7) if w is None else w):
                if y in (0, 1, 3):
                    spread = torch.zeros(4) if v is None else (q**2 * v).sum(1) / (2 * 0.5**2)
                    s = torch.stack([(q * m).sum() / 0.5 + e for m, e in zip(mean, spread)])
                    total = total + share * (torch.log(s[[0, 1, 3]].exp().sum()) - (q * mean[y]).sum() / 0.5)
                    count = count + share
            return total / count

        def ours(x):
            return class_contrast(x, labels, mean, v, met, temperature=0.5, weights=w)

        torch.testing.assert_close(with_gradients(ours, x), with_gradients(written_out, x), rtol=1e-9, atol=1e-9)


def test_distcl_is_the_contrast_with_many_draws_of_each_class():
    """From above, and near it where the spread is small."""
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(5, 6, generator=g, dtype=torch.float64), dim=1)
    mean, variance = torch.randn(3, 6, generator=g, dtype=torch.float64), torch.full((3, 6), 0.05, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    draws = mean[:, None] + variance[:, None].sqrt() * torch.randn(3, 20000, 6, generator=g, dtype=torch.float64)
    sims = torch.einsum("nc,kdc->nkd", x, draws) / 0.5
    own = sims[torch.arange(5), labels].mean(1)  # the mean over positives
    sampled = (sims.exp().mean(2).sum(1).log() - own).mean()
    got = class_contrast(x, labels, mean, variance, torch.ones(3, dtype=torch.bool), temperature=0.5)
    torch.testing.assert_close(got, sampled, rtol=5e-3, atol=0)


def test_statistics_are_those_of_the_mixture_and_wait_for_a_class():
    statistics = ClassStatistics(3, momentum=0.75)
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(20, 4, generator=g, dtype=torch.float64) for _ in range(2))
    statistics.update(first, torch.tensor([0, 1] * 9 + [255, 7]))
    torch.testing.assert_close(statistics.mean[0], first[0:18:2].mean(0))
    torch.testing.assert_close(statistics.variance[1], first[1:18:2].var(0, correction=0))
    assert statistics.met.tolist() == [True, True, False]
    statistics.update(second, torch.tensor([0] * 10 + [2] * 10))
    # A quarter of the weight for the new pixels of class 0.
    pixels, w = torch.cat([first[0:18:2], second[:10]]), torch.tensor([0.75 / 9] * 9 + [0.25 / 10] * 10).double()[:, None]
    mean = (w * pixels).sum(0)
    torch.testing.assert_close(statistics.mean[0], mean)
    torch.testing.assert_close(statistics.variance[0], (w * (pixels - mean) ** 2).sum(0))
    torch.testing.assert_close(statistics.mean[1], first[1:18:2].mean(0))  # not among the pixels
    torch.testing.assert_close(statistics.mean[2], second[10:].mean(0))
    assert statistics.met.all()


def test_contrast_without_a_pixel_that_counts_is_zero_and_finite():
    x = torch.randn(4, 3)
    args = torch.zeros(2, 3), torch.zeros(2, 3)
    for labels, met in ((torch.full((4,), 255), [True, True]), (torch.zeros(4, dtype=torch.long), [False, False])):
        loss, grad = with_gradients(lambda x: class_contrast(x, labels, *args, torch.tensor(met), temperature=0.1), x)
        assert loss == 0 and grad.isfinite().all() and not grad.any()


@pytest.mark.parametrize("form", ["dist", "proto"])
def test_the_contrast_term_reads_sure_target_pixels_alone(form):
    def term(threshold):
        return ClassContrastTerm(K, form=form, temperature=0.1, momentum=0.9, threshold=threshold, teacher=False)

    step = step_of()
    confidence, pseudo = step.target_outputs.logits.softmax(1).max(1)
    threshold = confidence.median().item()
    compute = term(threshold)
    got = compute(step)
    s = compute.statistics
    labels = labels_at(step.source.label, step.source_outputs.features.shape[-2:]).flatten()
    variance = s.variance if form == "dist" else None
    options = {"temperature": 0.1}
    of_source = class_contrast(directions(step.source_outputs.features), labels, s.mean, variance, s.met, **options)
    sure = confidence.flatten() >= threshold
    of_target = directions(step.target_outputs.features)[sure]
    of_target = class_contrast(of_target, pseudo.flatten()[sure], s.mean, variance, s.met, **options)
    torch.testing.assert_close(got, (of_source + of_target) / 2)
    unsure = term(1.1)(step_of())
    torch.testing.assert_close(unsure, of_source / 2)


def test_impossible_numbers_of_the_contrast_are_refused():
    with pytest.raises(ValueError, match="CLASS_CONTRAST.MOMENTUM is 1.0"):
        ClassStatistics(3, 1.0)
    with pytest.raises(ValueError, match="CLASS_CONTRAST.TEMPERATURE is 0.0"):
        ClassContrastTerm(3, form="dist", temperature=0.0, momentum=0.9, threshold=0.9, teacher=False)


OPTIONS = [
    "NUM_CLASSES=4", "CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=2", "TRAIN.BATCH_SIZE_TARGET=2",
    "CLASS_CONTRAST.LAMBDA=0.1", "CLASS_CONTRAST.THRESHOLD=0.2", "TRAIN.LEARNING_RATE=0.01",
]  # fmt: skip


def trainer() -> Trainer:
    torch.manual_seed(0)
    network = TinyNetwork(K)
    return Trainer(network, build_objective(cfg, CPU), build_optimizer(network, cfg), max_iterations=10)


def batches(numbers):
    for n in numbers:
        yield random_batch(2, num_classes=K, seed=n), random_batch(2, seed=100 + n, labelled=False)


def test_a_run_with_class_statistics_goes_on_from_its_state_as_if_it_had_not_stopped():
    cfg_from_list(OPTIONS)
    whole = trainer()
    torch.manual_seed(5)
    source = batches(range(6))
    for iteration in range(6):
        values, _ = whole.iterate(iteration, source)
        if iteration == 2:
            rng = torch.get_rng_state()
            state = torch_copy(whole.state_dict())
    assert set(state["terms"]) == {"loss_class_contrast"} and state["terms"]["loss_class_contrast"]["met"].all()
    resumed = trainer()
    resumed.load_state_dict(state)
    torch.set_rng_state(rng)
    source = batches(range(3, 6))
    for iteration in range(3, 6):
        again, _ = resumed.iterate(iteration, source)
    assert again.keys() == values.keys() and all(again[k] == values[k] for k in values)
    assert same(torch_copy(resumed.state_dict()), torch_copy(whole.state_dict()))


def torch_copy(state):
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {k: torch_copy(v) for k, v in state.items()}
    return [torch_copy(v) for v in state] if isinstance(state, (list, tuple)) else state


def test_what_terms_remembered_before_a_step_is_not_changed_by_it():
    """It is what a step that fails is saved with."""
    cfg_from_list(OPTIONS)
    t = trainer()
    source = batches(range(3))
    for iteration in range(2):
        t.iterate(iteration, source)
    before = t.remembered()
    kept = torch_copy(before)
    t.iterate(2, source)
    assert same(before, kept) and not same(t.remembered(), kept)


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
        found = cycle_association(x, y, labels).closed
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
        cycles = cycle_association(x, y, labels_at(source.label, x.shape[-2:]))
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
