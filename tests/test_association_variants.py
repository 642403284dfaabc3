"""Variants of the association: each against its formula written out, and against the form without the variant."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_streaming_association import run
from tiny import TinyNetwork, random_batch, same

from dada.config import cfg, cfg_from_list
from dada.dataset.class_pairs import ClassPairs, class_overlap_scores
from dada.dataset.sampler import StepSampler
from dada.domain_adaptation.association import tiles
from dada.domain_adaptation.build import build_network
from dada.domain_adaptation.contrastive_learning import (
    Cycles,
    association_loss,
    contrast_normalize,
    cycle_association,
    labels_at,
    similarity,
    spatial_aggregation,
)
from dada.domain_adaptation.objectives import build_objective
from dada.domain_adaptation.step import Step
from dada.domain_adaptation.trainer import Trainer, build_optimizer
from dada.domain_adaptation.training.loop import train
from dada.domain_adaptation.training.runs import run_of
from dada.domain_adaptation.variants.class_contrast import ClassStatistics, class_contrast, directions
from dada.domain_adaptation.variants.closure import cycle_closure
from dada.domain_adaptation.variants.cycle_weights import class_balanced, cycle_weights, turning_confidence
from dada.domain_adaptation.variants.pixel_memory import PixelMemory, balanced_sample
from dada.domain_adaptation.variants.soft_cycles import attend, soft_association_loss
from dada.domain_adaptation.variants.terms import AssociationTerm, ClassContrastTerm, Variant

METRICS = pytest.mark.parametrize("metric", ["cos", "kl"])
IMPLS = pytest.mark.parametrize("impl", ["dense", "streaming"])
CPU = torch.device("cpu")
K = 4


@pytest.fixture
def small_tiles(monkeypatch):
    """Small maps make many stripes, the last one of odd size."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 70)
    monkeypatch.setattr(tiles, "PRODUCT_ROWS", 3)


def case(seed=0, batch=2, channels=5, source_size=(3, 5), target_size=(4, 3), metric="cos", ignored=True):
    """Odd, unequal sizes; float64; a third of the labels ignored."""
    g = torch.Generator().manual_seed(seed)
    source = torch.randn(batch, channels, *source_size, generator=g, dtype=torch.float64)
    target = torch.randn(batch, channels, *target_size, generator=g, dtype=torch.float64)
    if metric == "kl":
        source, target = source.softmax(1), target.softmax(1)
    labels = torch.randint(3, (batch, *source_size), generator=g)
    if ignored:
        labels[torch.rand(labels.shape, generator=g) < 0.3] = 255
    return source, target, labels


def random_weights(labels, seed=1):
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(labels.shape, generator=g, dtype=torch.float64)
    return weights * (torch.rand(labels.shape, generator=g) < 0.7)


def by_hand(source, target, labels, weights, metric):
    """The weighted loss pixel by pixel; images aggregated already."""
    total, weight = source.new_zeros(()), 0.0
    for x, y, label, w in zip(source.flatten(2).mT, target.flatten(2).mT, labels.flatten(1), weights.flatten(1)):
        there, back = similarity(x, y, metric), similarity(y, x, metric)
        log_there, log_back = (contrast_normalize(s).log_softmax(1) for s in (there, back))
        for i in range(len(x)):
            j = there[i].argmax()
            k = back[j].argmax()
            if label[i] != 255 and label[i] == label[k]:
                total = total - w[i] * (log_there[i, j] + log_back[j, k])
                weight += w[i].item()
    return total / weight if weight else total * 0


def with_gradients(loss_of, *maps):
    maps = [m.detach().clone().requires_grad_() for m in maps]
    loss = loss_of(*maps)
    return loss.detach(), *torch.autograd.grad(loss, maps, allow_unused=True, materialize_grads=True)


def assert_all_close(got, want, tolerance=1e-9):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---- weights of cycles ---------------------------------------------------------------------------


@METRICS
@IMPLS
@pytest.mark.parametrize("aggregate", [False, True])
@pytest.mark.usefixtures("small_tiles")
def test_weighted_cycles_are_the_sum_written_out(metric, impl, aggregate):
    source, target, labels = case(metric=metric)
    weights = random_weights(labels)

    def written_out(x, y):
        y = spatial_aggregation(y, metric=metric, impl="dense") if aggregate else y
        return by_hand(x, y, labels, weights, metric)

    def ours(x, y):
        return association_loss(x, y, labels, weights=weights, metric=metric, aggregate=aggregate, impl=impl).loss

    want = with_gradients(written_out, source, target)
    assert want[0] > 0
    assert_all_close(with_gradients(ours, source, target), want)


@pytest.mark.usefixtures("small_tiles")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)), st.sampled_from(["cos", "kl"]), st.sampled_from([0.0, 0.5, 1.0]),
    st.floats(0, 0.6), st.booleans(),
)  # fmt: skip
def test_streaming_with_weights_is_the_dense_form_on_any_shape(seed, batch, size, other, metric, power, least, by):
    source, target, labels = case(seed, batch, 3, size, other, metric)
    g = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(batch, 3, *other, generator=g, dtype=torch.float64)
    weigh = cycle_weights(labels, probabilities, power=power, min_confidence=least, by_confidence=by)
    results = [run(source, target, labels, weights=weigh, metric=metric, impl=i) for i in ("streaming", "dense")]
    (got, grads), (want, want_grads) = results
    assert_all_close([got.loss, *got[1:4], *grads], [want.loss, *want[1:4], *want_grads])


@METRICS
@IMPLS
def test_weights_of_one_are_no_weights_and_their_scale_does_not_matter(metric, impl):
    source, target, labels = case(metric=metric)
    options = {"metric": metric, "impl": impl}
    plain, grads = run(source, target, labels, **options)
    for weights in (torch.ones(labels.shape), torch.full(labels.shape, 7.0)):
        weighted, weighted_grads = run(source, target, labels, weights=weights, **options)
        assert_all_close([weighted.loss, *weighted_grads], [plain.loss, *grads], 1e-12)


@METRICS
@IMPLS
@pytest.mark.parametrize("nothing", ["weights of zero", "nothing labelled", "nothing closes"])
def test_without_a_cycle_that_counts_loss_and_gradient_are_zero(metric, impl, nothing):
    source, target, labels = case(metric=metric)
    weights = torch.zeros(labels.shape) if nothing == "weights of zero" else torch.ones(labels.shape)
    if nothing == "nothing labelled":
        labels = torch.full_like(labels, 255)
    if nothing == "nothing closes":
        labels = torch.arange(labels[0].numel()).view(1, *labels.shape[1:])
        source, target, weights = source[:1], target[:1], weights[:1]
        source_index = cycle_association(source, target, labels, metric=metric).source_index[0]
        labels.flatten(1)[0, source_index] = 200 + torch.arange(len(source_index))  # pixels that are returned to
        labels.flatten(1)[source_index[None] == torch.arange(len(source_index))] = 255
    result, grads = run(source, target, labels, weights=weights, metric=metric, impl=impl)
    assert result.loss.item() == 0 and not any(g.any() for g in grads)


def test_weights_of_another_shape_are_refused_with_both():
    source, target, labels = case()
    with pytest.raises(ValueError, match=r"weights \(2, 15\).*expected \(2, 3, 5\)"):
        association_loss(source, target, labels, weights=torch.ones(2, 15))
    with pytest.raises(ValueError, match=r"weights \(2, 3, 5\).*expected \(2, 15\)"):
        association_loss(source, target, labels, weights=lambda cycles: torch.ones(2, 3, 5))


def test_balanced_classes_count_the_same_whatever_they_are_among_the_closed_cycles():
    source, target, labels = case(source_size=(6, 7))
    cycles = cycle_association(source, target, labels)
    weights = cycle_weights(labels, power=1.0)(cycles)
    found = [weights[labels.flatten(1) == k].sum().item() for k in range(3)]
    present = [bool((cycles.closed & (labels.flatten(1) == k)).any()) for k in range(3)]
    assert found == pytest.approx([float(p) for p in present]) and sum(present) > 1
    counts = torch.tensor([(cycles.closed & (labels.flatten(1) == k)).sum() for k in range(3)])
    weights = cycle_weights(labels, power=0.5)(cycles)
    found = [weights[labels.flatten(1) == k].sum().item() for k in range(3)]
    assert found == pytest.approx(counts.sqrt().tolist())


def test_confidence_is_the_probability_of_the_cycles_class_where_it_turns_around():
    cycles = Cycles(torch.tensor([[1, 0, 2, 1]]), torch.tensor([[0, 1, 2, 3]]), torch.tensor([[True, True, True, False]]))
    probabilities = torch.tensor([[[0.9, 0.4, 0.2], [0.1, 0.6, 0.8]]])[:, :, None]  # (1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, 1, 255]]])
    confidence = turning_confidence(cycles, labels.flatten(1), probabilities)
    torch.testing.assert_close(confidence, torch.tensor([[0.4, 0.1, 0.8, 0.0]]))
    kept = cycle_weights(labels, probabilities, min_confidence=0.4)(cycles)
    torch.testing.assert_close(kept, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    weighed = cycle_weights(labels, probabilities, by_confidence=True)(cycles)
    torch.testing.assert_close(weighed, torch.tensor([[0.4, 0.1, 0.8, 0.0]]))
    # Balanced at last: each class has the same sum of what is left.
    balanced = cycle_weights(labels, probabilities, by_confidence=True, power=1.0)(cycles)
    torch.testing.assert_close(balanced, torch.tensor([[1.0, 1 / 9, 8 / 9, 0.0]]))


def test_classes_without_weight_stay_without_when_balanced():
    labels = torch.tensor([[0, 0, 1, 255]])
    weights = class_balanced(torch.tensor([[0.0, 0.0, 2.0, 0.0]]), labels, 1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


# ---- soft cycles ---------------------------------------------------------------------------------


def soft_by_hand(source, target, labels, weights, metric):
    total, weight = source.new_zeros(()), 0.0
    for x, y, label, w in zip(source.flatten(2).mT, target.flatten(2).mT, labels.flatten(1), weights.flatten(1)):
        p = contrast_normalize(similarity(x, y, metric)).softmax(1) @ contrast_normalize(similarity(y, x, metric)).softmax(1)
        for i in (label != 255).nonzero()[:, 0]:
            total = total - w[i] * p[i, label == label[i]].sum().log()
            weight += w[i].item()
    return total / weight


@METRICS
@pytest.mark.parametrize("stripe", [1, 37, 10**6])
def test_soft_cycles_are_the_round_trip_written_out_in_any_stripes(metric, stripe):
    source, target, labels = case(metric=metric)
    weights = random_weights(labels)

    def ours(x, y):
        options = {"metric": metric, "aggregate": False, "stripe": stripe}
        return soft_association_loss(x, y, labels, 3, weights=weights, **options).loss

    want = with_gradients(lambda x, y: soft_by_hand(x, y, labels, weights, metric), source, target)
    assert_all_close(with_gradients(ours, source, target), want)


@METRICS
def test_soft_cycles_aggregate_the_target_first(metric):
    source, target, labels = case(metric=metric)
    aggregated = spatial_aggregation(target, alpha=0.3, metric=metric)
    got = soft_association_loss(source, target, labels, 3, metric=metric, alpha=0.3)
    want = soft_association_loss(source, aggregated, labels, 3, metric=metric, aggregate=False)
    torch.testing.assert_close(got.loss, want.loss)
    known = labels != 255
    assert (got.probability[known] > 0).all() and not got.probability[~known].any()
    torch.testing.assert_close(got.returning, got.probability[known].mean())


def test_soft_cycles_of_nothing_labelled_have_no_loss_and_no_gradient():
    source, target, labels = case()
    results = with_gradients(lambda x, y: soft_association_loss(x, y, labels * 0 + 255, 3).loss, source, target)
    assert not any(r.any() for r in results)


def test_soft_cycles_of_one_class_always_return():
    source, target, _ = case()
    result = soft_association_loss(source, target, torch.zeros(2, 3, 5, dtype=torch.long), 3)
    assert result.loss.item() == pytest.approx(0, abs=1e-12) and result.returning.item() == pytest.approx(1)


def test_attention_in_stripes_makes_no_larger_matrix():
    largest = 0
    rows, columns, values = torch.randn(50, 3, requires_grad=True), torch.randn(40, 3), torch.randn(40, 2)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return result

    with Watch():
        attend(rows, columns, values, stripe=200).sum().backward()
    assert largest == 200


def test_confidence_of_soft_cycles_is_refused():
    with pytest.raises(ValueError, match="ASSOCIATION.SOFT.*Set ASSOCIATION.MIN_CONFIDENCE to 0"):
        Variant(soft=True, min_confidence=0.5)


# ---- terms: both directions, the whole batch, a memory -------------------------------------------


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
def test_a_term_without_a_variant_is_the_published_loss(level, metric):
    step = step_of()
    source, target = maps(step, level)
    want = association_loss(source, target, labels_at(step.source.label, source.shape[-2:]), metric=metric)
    torch.testing.assert_close(AssociationTerm(level, K, Variant())(step), want.loss)
    assert step.notes[f"{level}/closed"] == want.closed / want.labelled
    assert step.notes[f"{level}/covered"] == want.covered / want.closed


@LEVELS
def test_both_directions_are_the_mean_of_the_loss_and_of_that_with_swapped_domains(level, metric):
    step = step_of()
    source, target = maps(step, level)
    confidence, pseudo = step.target_outputs.logits.softmax(1).max(1)
    threshold = confidence.median().item()
    got = AssociationTerm(level, K, Variant(both_directions=True, pseudo_threshold=threshold))(step)
    mixed = spatial_aggregation(target, metric=metric)
    pseudo = pseudo.masked_fill(confidence < threshold, 255)
    labels = labels_at(step.source.label, source.shape[-2:])
    there = association_loss(source, mixed, labels, metric=metric, aggregate=False).loss
    back = association_loss(mixed, source, pseudo, metric=metric, aggregate=False).loss
    torch.testing.assert_close(got, (there + back) / 2)
    assert back > 0 and f"{level}_back/closed" in step.notes


@LEVELS
def test_the_whole_batch_is_one_image_with_the_pixels_of_all(level, metric):
    step = step_of(batch=3, target_batch=2)
    source, target = maps(step, level)
    got = AssociationTerm(level, K, Variant(whole_batch=True))(step)
    mixed = spatial_aggregation(target, metric=metric)
    source, mixed = (torch.cat(list(x), dim=1)[None] for x in (source, mixed))  # one above the other
    labels = torch.cat(list(labels_at(step.source.label, step.source_outputs.features.shape[-2:])))[None]
    want = association_loss(source, mixed, labels, metric=metric, aggregate=False).loss
    torch.testing.assert_close(got, want)


@LEVELS
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_remembered_pixels_are_associated_beside_those_of_the_step_without_gradient(level, metric, whole, soft):
    network = Fixed()
    term = AssociationTerm(level, K, Variant(memory=40, memory_per_image=7, whole_batch=whole, aggregate=False, soft=soft))
    term(step_of(seed=1, network=network))
    remembered, labels_M = term.memories["source"].x, term.memories["source"].labels
    remembered_target = term.memories["target"].x[:-K]
    assert remembered.shape[1] == remembered_target.shape[1] == len(labels_M) == 14
    step = step_of(seed=2, network=network)
    got = term(step)
    grad, term_notes = torch.autograd.grad(got, network.parameters(), allow_unused=True), step.notes

    def joined(x, more):
        x = x.flatten(2)
        x = torch.cat(list(x), dim=1)[None] if whole else x
        return torch.cat([x, more.expand(len(x), *more.shape)], dim=2)[:, :, None]

    step = step_of(seed=2, network=network)
    source, target = maps(step, level)
    labels = joined(labels_at(step.source.label, source.shape[-2:])[:, None], labels_M[None])[:, 0]
    arguments = joined(source, remembered), joined(target, remembered_target), labels
    options = {"metric": metric, "aggregate": False}
    s, t = (arguments[k].shape[-1] - 14 for k in (0, 1))
    first = torch.zeros(labels.shape)
    first[..., :s] = 1
    if soft:  # walks start at pixels of the step
        want = soft_association_loss(*arguments, K, weights=first, **options)
    else:  # cycles through remembered pixels alone do not count
        cycles = cycle_association(*arguments, **options)
        inside = (cycles.target_index >= t) & (cycles.source_index >= s) & (torch.arange(s + 14) >= s)
        assert (inside & cycles.closed).any() or whole
        want = association_loss(*arguments, weights=(~inside).view(labels.shape), **options)
        assert step.notes == {} and set(term_notes) == {f"{level}/{n}" for n in ("closed", "covered", "confidence")}
        own = labels[..., :s] != 255
        assert term_notes[f"{level}/closed"] == pytest.approx((cycles.closed[:, :s].sum() / own.sum()).item())
    torch.testing.assert_close(got, want.loss)
    want_grad = torch.autograd.grad(want.loss, network.parameters(), allow_unused=True)
    assert_all_close([g for g in grad if g is not None], [g for g in want_grad if g is not None])


def test_a_memory_takes_turns_and_knows_its_pixels():
    memory = PixelMemory(capacity=5, per_image=2)
    for number in range(4):
        x = torch.full((1, 3, 2, 2), float(number))
        memory.add(x, torch.full((1, 2, 2), number))
        assert len(memory) == min(5, 2 * (number + 1))
    # 0 0 1 1 2, then 2 3 3 in the place of the first three.
    assert memory.labels.tolist() == [2, 3, 3, 1, 2] and memory.x[0].tolist() == [2, 3, 3, 1, 2]
    memory.add(torch.full((4, 3, 1, 2), 9.0), torch.full((4, 1, 2), 9))  # more than there is room for
    assert memory.labels.tolist() == [9] * 5


def test_a_sample_has_no_pixel_twice_and_all_classes_alike():
    torch.manual_seed(0)
    labels = torch.tensor([[0] * 990 + [1] * 10 + [255] * 1000])
    drawn = [balanced_sample(labels, 10)[0] for _ in range(100)]
    assert all(len(set(d.tolist())) == 10 for d in drawn)
    of_classes = labels[0, torch.cat(drawn)]
    assert not (of_classes == 255).any()
    # Without putting back the rare class runs out, a little.
    assert 0.4 < (of_classes == 1).float().mean() < 0.55
    first = [balanced_sample(labels, 1)[0, 0].item() >= 990 for _ in range(400)]
    assert 0.42 < sum(first) / 400 < 0.58


def test_an_image_without_labels_gives_pixels_that_close_nothing_and_few_pixels_are_all_taken():
    assert balanced_sample(torch.full((2, 6), 255), 4).shape == (2, 4)
    assert sorted(balanced_sample(torch.tensor([[1, 1, 255]]), 10)[0].tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="capacity is 0"):
        PixelMemory(0, 4)


OPTIONS = [
    "NUM_CLASSES=4", "CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=2", "TRAIN.BATCH_SIZE_TARGET=2",
    "ASSOCIATION.MEMORY=30", "ASSOCIATION.MEMORY_PER_IMAGE=9", "CLASS_CONTRAST.LAMBDA=0.1", "ASSOCIATION.PSEUDO_THRESHOLD=0.2",
    "ASSOCIATION.BOTH_DIRECTIONS=True", "ASSOCIATION.CLASS_BALANCE=sqrt", "ASSOCIATION.BY_CONFIDENCE=True",
    "TRAIN.LEARNING_RATE=0.01", "TRAIN.LAMBDA_CONSISTENCY=0",
]  # fmt: skip


def trainer() -> Trainer:
    torch.manual_seed(0)
    network = TinyNetwork(K)
    return Trainer(network, build_objective(cfg, CPU), build_optimizer(network, cfg), max_iterations=10)


def batches(numbers):
    for n in numbers:
        yield random_batch(2, num_classes=K, seed=n), random_batch(2, seed=100 + n, labelled=False)


def test_a_run_with_memories_goes_on_from_its_state_as_if_it_had_not_stopped():
    cfg_from_list(OPTIONS)
    whole = trainer()
    torch.manual_seed(5)
    source = batches(range(6))
    for iteration in range(6):
        values, _ = whole.iterate(iteration, source)
        if iteration == 2:
            rng = torch.get_rng_state()
            state = torch_copy(whole.state_dict())
    assert {"loss_fass", "loss_cass", "loss_class_contrast"} == set(state["terms"])
    assert state["terms"]["loss_fass"]["source"]["labels"].numel() == 30
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


def test_unequal_batches_are_associated_as_a_whole_only():
    options = ["CONTRASTIVE_LEARNING=True", "TRAIN.BATCH_SIZE_SOURCE=2", "TRAIN.LAMBDA_CONSISTENCY=0"]
    cfg_from_list(options)
    with pytest.raises(ValueError, match="TRAIN.BATCH_SIZE_TARGET 1 must be equal, or ASSOCIATION.WHOLE_BATCH True"):
        build_objective(cfg, CPU)
    cfg_from_list(["ASSOCIATION.WHOLE_BATCH=True"])
    build_objective(cfg, CPU)


SWITCHES = {
    "whole_batch": True, "memory": 20, "both_directions": True, "power": 0.5, "by_confidence": True, "aggregate": False,
}  # fmt: skip


@LEVELS
def test_all_switches_go_together(level, metric):
    network = Fixed()
    for pair in itertools.combinations(SWITCHES, 2):
        term = AssociationTerm(level, K, Variant(pseudo_threshold=0.2, **{k: SWITCHES[k] for k in pair}))
        for seed in (1, 2):
            step = step_of(seed, network)
            loss = term(step)
            assert loss.isfinite() and loss > 0, pair
        (grad,) = torch.autograd.grad(loss, [network.network.stem.weight])
        assert grad.isfinite().all() and grad.any(), pair
    term = AssociationTerm(level, K, Variant(pseudo_threshold=0.2, memory_per_image=5, min_confidence=0.1, **SWITCHES))
    for seed in (1, 2):
        assert term(step_of(seed, network)).isfinite()


def test_rates_of_each_class_are_those_of_its_pixels():
    step = step_of()
    AssociationTerm("fass", K, Variant())(step)
    source, target = maps(step, "fass")
    labels = labels_at(step.source.label, source.shape[-2:])
    cycles = cycle_association(source, target, labels)
    for k in range(K):
        mine = labels.flatten(1) == k
        torch.testing.assert_close(step.by_class["fass/closed"][k], cycles.closed[mine].double().mean())
    step = step_of()
    step.source.label[step.source.label == 2] = 1
    AssociationTerm("fass", K, Variant())(step)
    assert step.by_class["fass/closed"].isnan().tolist() == [False, False, True, False]


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

        assert_all_close(with_gradients(ours, x), with_gradients(written_out, x))


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


# ---- pairs of images -----------------------------------------------------------------------------


def test_overlap_of_classes_is_the_bhattacharyya_coefficient():
    source, target = np.array([[2, 2, 0], [0, 0, 5], [0, 0, 0]]), np.array([[1, 1, 0], [9, 0, 0]])
    expected = [[1.0, 0.0, 0.0], [0.5**0.5, 0.0, 0.0]]
    np.testing.assert_allclose(class_overlap_scores(source, target), expected)


def test_every_target_image_is_paired_with_a_source_image_that_overlaps_with_it_most():
    source = np.eye(5, dtype=int).repeat(4, axis=0) * 10 + 1  # 20 images, four for each class
    target = np.eye(5, dtype=int)[[4, 2, 0]] * 7
    pairs = ClassPairs(source, target, top=0.2, batch_size=2)
    target_batches = list(StepSampler(3, 2, seed=3, stop_step=30, stream="target"))
    source_batches = list(StepSampler(20, 2, seed=3, stop_step=30, by_class=pairs.draw))
    best = {0: range(16, 20), 1: range(8, 12), 2: range(4)}
    drawn = {t: set() for t in best}
    for of_source, of_target in zip(source_batches, target_batches):
        for s, t in zip(of_source, of_target):
            assert s.index in best[t.index] and s.slot == t.slot
            drawn[t.index].add(s.index)
    assert drawn == {t: set(b) for t, b in best.items()}  # not always the same one
    # The draws of a resumed run are those of the whole one.
    again = list(StepSampler(20, 2, seed=3, start_step=17, stop_step=30, by_class=ClassPairs(source, target, 0.2, 2).draw))
    assert again == source_batches[17:]


def test_an_image_of_which_nothing_is_known_may_be_paired_with_any():
    pairs = ClassPairs(np.ones((6, 2)), np.zeros((1, 2)), top=0.1, batch_size=1)
    assert {pairs.draw(0, "source", step, 0)[0] for step in range(80)} == set(range(6))


def test_pairs_of_nothing_are_refused():
    with pytest.raises(ValueError, match="ASSOCIATION.PAIR_TOP is 0"):
        ClassPairs(np.ones((2, 3)), np.ones((2, 3)), 0, 1)
    with pytest.raises(ValueError, match="source images have 3 classes, target images 2"):
        ClassPairs(np.ones((2, 3)), np.ones((2, 2)), 0.5, 1)


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


def test_a_run_in_pairs_is_resumed_exactly_and_needs_a_network_that_knows_the_classes(tiny_cfg, tmp_path):
    def run_named(name, *options, resume=""):
        cfg_from_list([f"EXP_NAME={name}", *options])
        network = train(cfg, run_of(cfg), resume=resume)
        return {k: v.clone() for k, v in network.state_dict().items()}

    cfg_from_list(["ASSOCIATION.PAIR_TOP=0.3", "CONTRASTIVE_LEARNING=True", "TRAIN.LAMBDA_CONSISTENCY=0"])
    with pytest.raises(ValueError, match="ASSOCIATION.PAIR_TOP.*RESTORE_FROM is ''.*snapshot of a source-only run"):
        run_named("none")
    torch.save({"state_dict": build_network(cfg, "").state_dict()}, tmp_path / "source_only.pth")
    cfg_from_list([f"TRAIN.RESTORE_FROM={tmp_path / 'source_only.pth'}", "ASSOCIATION.MEMORY=50"])
    whole = run_named("whole")
    run_named("parts", "TRAIN.EARLY_STOP=1")
    saved = torch.load(run_of(cfg).snapshots / "checkpoint_1.pth", weights_only=True)
    assert saved["target_classes"].shape == (4, 16) and (saved["target_classes"].sum(1) > 0).all()
    assert same(run_named("parts", "TRAIN.EARLY_STOP=0", resume="auto"), whole)
    with pytest.raises(ValueError, match="TRAIN.RARE_CLASS_TEMPERATURE and ASSOCIATION.PAIR_TOP.*set one to 0"):
        run_named("both", "TRAIN.RARE_CLASS_TEMPERATURE=0.1")
