"""The association functions themselves: cycles that can be read off, the formula by hand, and what happens at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dada.domain_adaptation.contrastive_learning import (
    contrast_normalize,
    cosine_similarity,
    cycle_associate,
    kl_similarity,
    labels_at,
    similarity,
)
from dada.domain_adaptation.cycle_association import cycle_association_loss, spatial_aggregation

IGNORE = 255


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_case(seed, batch=1, channels=5, source_size=(3, 4), target_size=(2, 3), classes=2, metric="cos"):
    source, target = maps(batch, channels, *source_size, seed=seed), maps(batch, channels, *target_size, seed=seed + 1)
    if metric == "kl":
        source, target = source.softmax(1), target.softmax(1)
    g = torch.Generator().manual_seed(seed + 2)
    labels = torch.randint(0, classes, (batch, *source_size), generator=g)
    labels[0, 0, 0] = IGNORE
    return source, target, labels


# ---- the formula, one pixel at a time, nothing shared with the code under test -------------------------------------


def cos_by_hand(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def kl_by_hand(p, q):
    return -sum(x * (math.log(x + 1e-10) - math.log(y + 1e-10)) for x, y in zip(p, q))


def softmax_by_hand(row, normalize=True):
    if normalize:
        mean = sum(row) / len(row)
        std = math.sqrt(sum((v - mean) ** 2 for v in row) / (len(row) - 1))
        row = [(v - mean) / (std + 1e-10) for v in row]
    top = max(row)
    exps = [math.exp(v - top) for v in row]
    return [e / sum(exps) for e in exps]


def aggregate_by_hand(pixels, alpha, metric):
    sim = cos_by_hand if metric == "cos" else kl_by_hand
    mixed = []
    for x in pixels:
        weights = softmax_by_hand([sim(x, y) for y in pixels], normalize=metric == "cos")
        mean = [sum(w * y[c] for w, y in zip(weights, pixels)) for c in range(len(x))]
        mixed.append([(1 - alpha) * a + alpha * b for a, b in zip(x, mean)])
    return mixed


def loss_by_hand(source, target, labels, metric, aggregate, alpha=0.5):
    """Mean over the closed cycles of all images of -log p(j*|i) - log p(i*|j*), and their number."""
    sim = cos_by_hand if metric == "cos" else kl_by_hand
    terms = []
    for image in range(len(source)):
        s, t = source[image].flatten(1).T.tolist(), target[image].flatten(1).T.tolist()
        y = labels[image].flatten().tolist()
        if aggregate:
            t = aggregate_by_hand(t, alpha, metric)
        for i in range(len(s)):
            there = [sim(s[i], b) for b in t]
            j = there.index(max(there))
            back = [sim(t[j], a) for a in s]
            i_back = back.index(max(back))
            if y[i] != IGNORE and y[i] == y[i_back]:
                terms.append(-math.log(softmax_by_hand(there)[j]) - math.log(softmax_by_hand(back)[i_back]))
    return sum(terms) / max(len(terms), 1), len(terms)


@pytest.mark.parametrize("metric", ["cos", "kl"])
@pytest.mark.parametrize("aggregate", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_formula_on_a_batch_of_maps_of_unequal_size(seed, aggregate, metric):
    source, target, labels = random_case(seed, batch=2, metric=metric)
    result = cycle_association_loss(source, target, labels, metric=metric, aggregate=aggregate, alpha=0.3)
    want, closed = loss_by_hand(source, target, labels, metric, aggregate, alpha=0.3)
    assert result.closed.item() == closed > 0
    assert result.loss.item() == pytest.approx(want, rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.data())
def test_loss_is_the_formula_on_any_shape(data):
    draw = data.draw
    sizes = [draw(st.tuples(st.integers(1, 4), st.integers(2, 4))) for _ in range(2)]
    metric = draw(st.sampled_from(["cos", "kl"]))
    aggregate, seed = draw(st.booleans()), draw(st.integers(0, 1000))
    source, target, labels = random_case(
        seed, draw(st.integers(1, 3)), draw(st.integers(2, 6)), *sizes, draw(st.integers(1, 3)), metric
    )
    result = cycle_association_loss(source, target, labels, metric=metric, aggregate=aggregate)
    want, closed = loss_by_hand(source, target, labels, metric, aggregate)
    assert result.closed.item() == closed
    assert result.loss.item() == pytest.approx(want, rel=1e-8, abs=1e-12)


def test_spatial_aggregation_is_the_formula():
    x = maps(1, 4, 2, 3)
    for metric, pixels in (("cos", x), ("kl", x.softmax(1))):
        want = torch.tensor(aggregate_by_hand(pixels[0].flatten(1).T.tolist(), 0.5, metric), dtype=torch.float64)
        got = spatial_aggregation(pixels, alpha=0.5, metric=metric)
        torch.testing.assert_close(got[0].flatten(1).T, want, rtol=1e-10, atol=1e-12)


# ---- cycles that can be read off -----------------------------------------------------------------------------------

# Source pixels look along x, y, y+ and -x; target pixels along y and x. Every target is closest to one source pixel.
SOURCE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 1.0], [-1.0, 0.1]]).T.reshape(1, 2, 1, 4)
TARGET = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).T.reshape(1, 2, 1, 2)
TO_TARGET, BACK_TO_SOURCE = [1, 0, 0, 0], [0, 1, 1, 1]


def cycles_of(source, target, labels, **options):
    sim = similarity(source.flatten(2).mT, target.flatten(2).mT, "cos")
    return cycle_associate(sim, sim.mT, labels.flatten(1), **options)


def test_cycles_lead_to_the_most_similar_pixel_and_back():
    cycles = cycles_of(SOURCE, TARGET, torch.tensor([[[0, 1, 1, 2]]]))
    assert cycles.target_index.tolist() == [TO_TARGET]
    assert cycles.source_index.tolist() == [BACK_TO_SOURCE]
    assert cycles.closed.tolist() == [[True, True, True, False]]  # the last starts in class 2 and ends in class 1


def test_a_cycle_closes_by_class_not_by_pixel():
    cycles = cycles_of(SOURCE, TARGET, torch.tensor([[[0, 1, 2, 1]]]))
    assert cycles.closed.tolist() == [[True, True, False, True]]


def test_ignored_pixels_start_and_close_no_cycle():
    ignored_end = cycles_of(SOURCE, TARGET, torch.tensor([[[0, IGNORE, 1, 1]]]))
    assert ignored_end.closed.tolist() == [[True, False, False, False]]
    both_ignored = cycles_of(SOURCE, TARGET, torch.full((1, 1, 4), IGNORE))
    assert not both_ignored.closed.any()
    other_id = cycles_of(SOURCE, TARGET, torch.tensor([[[0, 7, 7, 1]]]), ignore_index=7)
    assert other_id.closed.tolist() == [[True, False, False, False]]


def test_rows_of_the_map_are_read_before_columns():
    """A 2x2 map whose pixels all differ: a transposed flattening would close other cycles."""
    source = torch.eye(4).reshape(1, 4, 2, 2)
    target = torch.eye(4)[:, [2, 0, 3, 1]].reshape(1, 4, 2, 2)
    cycles = cycles_of(source, target, torch.arange(4).reshape(1, 2, 2))
    assert cycles.target_index.tolist() == [[1, 3, 0, 2]]
    assert cycles.source_index.tolist() == [[0, 1, 2, 3]]


def test_ties_go_to_the_first_pixel():
    source, target = torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 2)
    cycles = cycles_of(source, target, torch.zeros(1, 1, 3, dtype=torch.long))
    assert cycles.target_index.tolist() == [[0, 0, 0]] and cycles.source_index.tolist() == [[0, 0, 0]]


def test_counts_say_how_busy_the_loss_is():
    labels = torch.tensor([[[0, 1, 1, IGNORE]]])
    result = cycle_association_loss(SOURCE, TARGET, labels, aggregate=False)
    assert (result.closed.item(), result.labelled.item(), result.covered.item()) == (3, 3, 2)


# ---- what the loss rewards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cos", "kl"])
def test_a_gradient_step_lowers_the_loss(metric):
    source, target, labels = random_case(3, source_size=(5, 6), target_size=(4, 5), classes=3, metric=metric)
    source.requires_grad_(), target.requires_grad_()
    before = cycle_association_loss(source, target, labels, metric=metric)
    before.loss.backward()
    step = 1e-3
    after = cycle_association_loss(
        source.detach() - step * source.grad, target.detach() - step * target.grad, labels, metric=metric
    )
    assert after.closed == before.closed and after.loss < before.loss


def test_contrast_normalization_works_along_rows_and_is_a_constant_in_the_backward_pass():
    sim = maps(2, 3, 5).requires_grad_()
    out = contrast_normalize(sim)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.std(-1), torch.ones(2, 3, dtype=torch.float64))
    (grad,) = torch.autograd.grad(out.sum(), sim)
    want = (1 / (sim.std(-1, keepdim=True) + 1e-10)).expand_as(sim)  # not 0, as if mean and std had been trained through
    torch.testing.assert_close(grad, want.detach())


@pytest.mark.parametrize("metric", ["cos", "kl"])
@pytest.mark.parametrize("aggregate", [False, True])
def test_gradient_is_the_derivative_at_fixed_temperature(metric, aggregate):
    """Finite differences of the formula with every mean and std frozen at its value."""
    source, target, labels = random_case(5, metric=metric)
    source.requires_grad_(), target.requires_grad_()
    loss = cycle_association_loss(source, target, labels, metric=metric, aggregate=aggregate).loss
    grads = torch.autograd.grad(loss, (source, target))

    def frozen_loss(s, t):
        return loss_at_frozen_statistics(s, t, source.detach(), target.detach(), labels, metric, aggregate)

    assert frozen_loss(source, target).item() == pytest.approx(loss.item(), rel=1e-10)
    for which, grad in enumerate(grads):
        direction = maps(*grad.shape, seed=11)
        eps = 1e-6
        moved = [
            [x.detach() + sign * eps * direction if k == which else x.detach() for k, x in enumerate((source, target))]
            for sign in (1, -1)
        ]
        slope = (frozen_loss(*moved[0]) - frozen_loss(*moved[1])) / (2 * eps)
        assert slope.item() == pytest.approx((grad * direction).sum().item(), rel=1e-5, abs=1e-9)


def loss_at_frozen_statistics(source, target, source_0, target_0, labels, metric, aggregate):
    """The loss, with mean and std of every row and all cycles taken at (source_0, target_0)."""

    def rows(x):
        return x.flatten(2).mT

    def normalize(sim, sim_0):
        return (sim - sim_0.mean(-1, keepdim=True)) / (sim_0.std(-1, keepdim=True) + 1e-10)

    def mixed(x, x_0):
        sim, sim_0 = similarity(x, x, metric), similarity(x_0, x_0, metric)
        weights = (normalize(sim, sim_0) if metric == "cos" else sim).softmax(-1)
        return 0.5 * x + 0.5 * weights @ x

    s, t, s_0, t_0 = rows(source), rows(target), rows(source_0), rows(target_0)
    if aggregate:
        t, t_0 = mixed(t, t_0), mixed(t_0, t_0)
    there_0, back_0 = similarity(s_0, t_0, metric), similarity(t_0, s_0, metric)
    j, i_back, closed = cycle_associate(there_0, back_0, labels.flatten(1))
    log_there = normalize(similarity(s, t, metric), there_0).log_softmax(-1)
    log_back = normalize(similarity(t, s, metric), back_0).log_softmax(-1)
    terms = [-log_there[b, i, j[b, i]] - log_back[b, j[b, i], i_back[b, i]] for b, i in closed.nonzero().tolist()]
    return torch.stack(terms).mean()


# ---- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cos", "kl"])
def test_no_closed_cycle_gives_zero_loss_and_zero_gradient(metric):
    source, target, labels = random_case(0, metric=metric)
    source.requires_grad_(), target.requires_grad_()
    result = cycle_association_loss(source, target, torch.full_like(labels, IGNORE), metric=metric)
    result.loss.backward()
    assert result.loss.item() == 0 and result.closed.item() == 0
    assert not source.grad.any() and not target.grad.any()


@pytest.mark.parametrize("metric", ["cos", "kl"])
@pytest.mark.parametrize("source_size, target_size", [((1, 1), (1, 1)), ((1, 1), (2, 3)), ((2, 3), (1, 1))])
def test_maps_of_one_pixel_have_no_contrast_and_stay_finite(source_size, target_size, metric):
    source, target, labels = random_case(0, source_size=source_size, target_size=target_size, classes=1, metric=metric)
    labels.zero_()
    source.requires_grad_(), target.requires_grad_()
    result = cycle_association_loss(source, target, labels, metric=metric)
    result.loss.backward()
    assert result.closed.item() == labels.numel()
    assert result.loss.isfinite() and source.grad.isfinite().all() and target.grad.isfinite().all()
    if source_size == target_size == (1, 1):
        assert result.loss.item() == 0


def test_a_zero_feature_vector_starts_no_cycle_and_receives_no_gradient():
    source, target, labels = random_case(4)
    source[0, :, 1, 1] = 0
    target[0, :, 0, 2] = 0
    labels.zero_()
    source.requires_grad_(), target.requires_grad_()
    result = cycle_association_loss(source, target, labels, aggregate=False)
    result.loss.backward()
    assert 0 < result.closed.item() <= labels.numel() - 1
    assert not source.grad[0, :, 1, 1].any() and not target.grad[0, :, 0, 2].any()
    assert source.grad.abs().max() < 100 and target.grad.abs().max() < 100


def test_equal_target_pixels_give_a_uniform_choice_not_amplified_rounding():
    source, labels = maps(1, 6, 3, 3, dtype=torch.float32), torch.zeros(1, 3, 3, dtype=torch.long)
    target = maps(1, 6, 1, 1, dtype=torch.float32).expand(1, 6, 2, 2).clone().requires_grad_()
    result = cycle_association_loss(source, target, labels, aggregate=False)
    result.loss.backward()
    assert result.loss.item() >= math.log(4) and target.grad.abs().max() < 10


def test_one_image_without_labels_adds_nothing_to_the_batch():
    source, target, labels = random_case(7, batch=2)
    labels[1] = IGNORE
    alone = cycle_association_loss(source[:1], target[:1], labels[:1])
    both = cycle_association_loss(source, target, labels)
    torch.testing.assert_close(both.loss, alone.loss)


def test_half_precision_is_computed_in_float32_also_under_autocast():
    source, target, labels = random_case(2, channels=16, source_size=(6, 7), target_size=(5, 6))
    source, target = source.bfloat16(), target.bfloat16()
    want = cycle_association_loss(source.float(), target.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cycle_association_loss(source, target, labels)
    assert got.loss.dtype == torch.float32 and got.closed == want.closed
    torch.testing.assert_close(got.loss, want.loss)


def test_strided_inputs_give_the_same_result():
    source, target, labels = random_case(6, source_size=(4, 4), target_size=(4, 4))
    strided = [x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2) for x in (source, target)]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        cycle_association_loss(*strided, labels).loss, cycle_association_loss(source, target, labels).loss, rtol=1e-12, atol=0
    )


def test_similarities_of_known_vectors():
    x, y = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), torch.tensor([[[4.0, 3.0], [-3.0, -4.0]]])
    torch.testing.assert_close(cosine_similarity(x, y), torch.tensor([[[0.96, -1.0], [0.0, 0.0]]]))
    p, q = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.25, 0.75]]])
    want = -(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    torch.testing.assert_close(kl_similarity(p, q), torch.tensor([[[want]]]))
    assert kl_similarity(q, p).item() != pytest.approx(want)  # rows come first


def test_labels_are_resized_to_the_nearest_never_blended():
    labels = torch.tensor([[[0, 0, 15, 15], [0, 0, 15, 15], [255, 255, 3, 3], [255, 255, 3, 3]]])
    assert labels_at(labels, (2, 2)).tolist() == [[[0, 15], [255, 3]]]
    assert set(labels_at(labels, (3, 3)).flatten().tolist()) <= {0, 3, 15, 255}


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_full_resolution_labels_are_refused_with_the_fix():
    source, target, _ = random_case(0)
    with pytest.raises(ValueError, match=r"\(1, 24, 32\).*\(1, 5, 3, 4\).*nearest"):
        cycle_association_loss(source, target, torch.zeros(1, 24, 32, dtype=torch.long))


def test_disagreeing_batches_and_channels_are_refused_with_both_shapes():
    source, target, labels = random_case(0)
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 4\).*\(1, 4, 2, 3\)"):
        cycle_association_loss(source, target[:, :4], labels)
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 4\).*\(2, 5, 2, 3\)"):
        cycle_association_loss(source, target.repeat(2, 1, 1, 1), labels)


def test_unknown_metric_and_alpha_are_refused():
    source, target, labels = random_case(0)
    with pytest.raises(ValueError, match="'euclid'.*|metric.*'cos', 'kl'.*'euclid'"):
        cycle_association_loss(source, target, labels, metric="euclid")
    with pytest.raises(ValueError, match="alpha.*1.5"):
        spatial_aggregation(target, alpha=1.5)


def test_maps_must_be_four_dimensional_and_not_empty():
    source, target, labels = random_case(0)
    with pytest.raises(ValueError, match=r"target.*\(B, C, H, W\).*\(5, 2, 3\)"):
        cycle_association_loss(source, target[0], labels)
    with pytest.raises(ValueError, match="no empty side"):
        cycle_association_loss(source, target[..., :0], labels)
