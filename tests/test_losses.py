"""Losses against their written formulas, one pixel at a time in float64, and at the edges."""

import math

import pytest
import torch

from dada.domain_adaptation import losses


def maps(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def label_maps(classes, *shape, seed=0, ignored=0.2):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=g)
    return torch.where(torch.rand(shape, generator=g) < ignored, 255, labels)


def close(got, want, tolerance=1e-12):
    want = torch.as_tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), want, rtol=tolerance, atol=tolerance)


def pixels(scores):
    """(B, K, H, W) -> B*H*W lists of K numbers, in the order of labels.flatten()."""
    return scores.permute(0, 2, 3, 1).reshape(-1, scores.shape[1]).tolist()


def log_softmax_by_hand(row):
    top = max(row)
    total = math.log(sum(math.exp(v - top) for v in row)) + top
    return [v - total for v in row]


def is_zero_with_zero_gradient(loss, x):
    assert loss.shape == () and loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, x)
    return bool((gradient == 0).all())


# ---- cross-entropy


def test_cross_entropy_is_the_mean_over_labelled_pixels_of_the_batch():
    logits, labels = maps(2, 4, 3, 5), label_maps(4, 2, 3, 5)
    labels[0] = torch.where(labels[0] == 255, 255, 1)  # unequal numbers of labelled pixels an image
    labels[1, :, :3] = 255
    terms = [-log_softmax_by_hand(row)[y] for row, y in zip(pixels(logits), labels.flatten().tolist()) if y != 255]
    assert 0 < len(terms) < labels.numel()
    close(losses.cross_entropy(logits, labels), sum(terms) / len(terms))


def test_cross_entropy_ignores_negative_and_chosen_ids_and_takes_any_integer_dtype():
    logits, labels = maps(1, 3, 2, 4), torch.tensor([[[0, 1, 2, 255], [2, 1, 0, 255]]])
    want = losses.cross_entropy(logits, labels)
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.float64):
        close(losses.cross_entropy(logits, labels.to(dtype)), want)
    close(losses.cross_entropy(logits, torch.where(labels == 255, -1, labels)), want)
    close(losses.cross_entropy(logits, torch.where(labels == 255, 7, labels), ignore_index=7), want)
    without_2 = losses.cross_entropy(logits, torch.where(labels == 2, 255, labels))
    close(losses.cross_entropy(logits, torch.where(labels == 255, 2, labels), ignore_index=2), without_2)


def test_cross_entropy_gradient_is_that_of_the_formula():
    labels = label_maps(3, 2, 3, 2)
    x = maps(2, 3, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: losses.cross_entropy(v, labels), x)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.lovasz_softmax])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3, 4, 5)])
def test_supervised_losses_without_a_labelled_pixel_are_zero(loss, shape):
    scores = torch.full(shape, 1 / 3, requires_grad=True)
    labels = torch.full((shape[0], *shape[2:]), 255)
    assert is_zero_with_zero_gradient(loss(scores, labels), scores)


@pytest.mark.looks_at_values
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.lovasz_softmax])
def test_supervised_losses_name_ids_without_a_class(loss):
    scores = torch.full((1, 3, 2, 2), 1 / 3)
    with pytest.raises(ValueError, match=r"ids \[3, 33\].* 3 classes \(0\.\.2.*train ids"):
        loss(scores, torch.tensor([[[0, 33], [3, 255]]]))
    with pytest.raises(ValueError, match="fractions; resize label maps by nearest"):
        loss(scores, torch.full((1, 2, 2), 0.5))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.lovasz_softmax])
def test_supervised_losses_refuse_labels_of_another_size_with_both_shapes(loss):
    scores = torch.full((2, 3, 4, 5), 1 / 3)
    with pytest.raises(ValueError, match=r"\(2, 8, 10\).*\(2, 3, 4, 5\) need \(2, 4, 5\).*upsample"):
        loss(scores, torch.zeros(2, 8, 10))
    with pytest.raises(ValueError, match=r"\(B, K, H, W\), got \(3, 4, 5\)"):
        loss(scores[0], torch.zeros(4, 5))


# ---- Lovász-Softmax


def lovasz_by_hand(probabilities, labels):
    """The docstring's formula, with its slopes: (loss, d loss / d p as nested lists [pixel][class])."""
    rows, ys = pixels(probabilities), labels.flatten().tolist()
    labelled = [i for i, y in enumerate(ys) if y != 255]
    present = sorted({ys[i] for i in labelled})
    total, slopes = 0.0, [[0.0] * len(row) for row in rows]
    for c in present:
        error = {i: abs((ys[i] == c) - rows[i][c]) for i in labelled}
        size = sum(ys[i] == c for i in labelled)
        previous, hits, others = 0.0, 0, 0
        for i in sorted(labelled, key=lambda i: -error[i]):
            hits, others = hits + (ys[i] == c), others + (ys[i] != c)
            jaccard = 1 - (size - hits) / (size + others)
            total += error[i] * (jaccard - previous) / len(present)
            slopes[i][c] = (jaccard - previous) / len(present) * (-1 if ys[i] == c else 1)
            previous = jaccard
    return total, slopes


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 3, 5, 7), (2, 5, 3, 4), (3, 4, 1, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_lovasz_softmax_and_its_gradient_are_the_formula(shape, seed):
    b, k, h, w = shape
    probabilities = maps(*shape, seed=seed).softmax(dim=1).requires_grad_()
    labels = label_maps(k, b, h, w, seed=seed)
    labels[0, 0, 0] = 0
    loss = losses.lovasz_softmax(probabilities, labels)
    want, slopes = lovasz_by_hand(probabilities.detach(), labels)
    close(loss, want)
    (gradient,) = torch.autograd.grad(2 * loss, probabilities)
    close(gradient / 2, torch.tensor(slopes, dtype=torch.float64).view(b, h, w, k).permute(0, 3, 1, 2))


def test_lovasz_softmax_with_one_labelled_pixel_is_the_mean_error_of_that_pixel_class():
    probabilities = maps(2, 4, 3, 3).softmax(dim=1)
    labels = torch.full((2, 3, 3), 255)
    labels[1, 2, 0] = 3
    close(losses.lovasz_softmax(probabilities, labels), 1 - probabilities[1, 3, 2, 0])


def test_lovasz_softmax_is_zero_for_a_perfect_and_one_for_an_opposite_prediction():
    labels = torch.tensor([[[0, 1, 1], [1, 255, 0]]])
    perfect = torch.nn.functional.one_hot(labels.clamp(max=1), 2).permute(0, 3, 1, 2).float()
    close(losses.lovasz_softmax(perfect, labels), 0.0)
    close(losses.lovasz_softmax(1 - perfect, labels), 1.0, 1e-6)


def lovasz_through_autograd(probabilities, labels):
    """The published way: differentiate through a float sort for each class."""
    valid = labels != 255
    p, y = probabilities.transpose(0, 1)[:, valid], labels[valid]
    terms = []
    for c in y.unique():
        hit = (y == c).to(p.dtype)
        errors, order = (hit - p[c]).abs().sort(descending=True)
        hit = hit[order]
        jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
        terms.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(terms).mean()


def test_lovasz_softmax_in_float32_on_a_large_map_agrees_with_float64():
    """Large enough for the integer sort to take its fast path."""
    k, labels = 5, label_maps(5, 2, 210, 190)
    # Multiples of 2^-24 have exact float32 errors, so both precisions rank the same pixels equal.
    p64 = (maps(2, k, 210, 190, scale=6).softmax(dim=1) * 2**24).round() / 2**24
    p64.requires_grad_()
    p32 = p64.detach().float().requires_grad_()
    loss, want = losses.lovasz_softmax(p32, labels), lovasz_through_autograd(p64, labels)
    close(loss, want.detach(), 2e-6)
    loss.backward()
    want.backward()
    one_hot = torch.nn.functional.one_hot(labels.where(labels < k, 0), k).permute(0, 3, 1, 2)
    errors = (p64.detach() - one_hot).abs()
    for c in range(k):
        # Pixels of equal error share their slopes in an order that is the sort's own; the sum is not.
        values, group = errors[:, c].flatten().unique(return_inverse=True)
        got, expected = (torch.zeros(len(values), dtype=torch.float64) for _ in range(2))
        got.index_add_(0, group, p32.grad[:, c].flatten().abs().double())
        expected.index_add_(0, group, p64.grad[:, c].flatten().abs())
        got, expected = got[values > 0], expected[values > 0]
        assert len(values) > 40_000
        assert ((got - expected).abs() <= 2e-6 * expected.clamp(min=1e-3 / labels.numel())).all()


def test_lovasz_softmax_sorts_many_classes_together_as_it_sorts_them_one_by_one(monkeypatch):
    probabilities, labels = maps(2, 6, 5, 4).softmax(dim=1).requires_grad_(), label_maps(6, 2, 5, 4)
    want = losses._LovaszSoftmax.apply(probabilities, labels, labels != 255)
    (want_gradient,) = torch.autograd.grad(want, probabilities)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for elements in (1, 100, 2**24):  # 1, 2 and all classes at once
        monkeypatch.setattr(losses, "_SORTED_AT_ONCE", elements)
        got = losses._LovaszSoftmax.apply(probabilities, labels, labels != 255)
        close(got, want.detach())
        close(torch.autograd.grad(got, probabilities)[0], want_gradient)


def test_lovasz_softmax_takes_probabilities_a_rounding_above_one():
    probabilities = torch.full((1, 2, 200, 200), 0.5)
    probabilities[:, 0, 0, 0] = 1 + 1e-6
    labels = torch.ones(1, 200, 200)
    labels[0, 1] = 0
    want = lovasz_through_autograd(probabilities.double(), labels.long())
    close(losses.lovasz_softmax(probabilities, labels), want, 2e-6)


@pytest.mark.looks_at_values
def test_lovasz_softmax_refuses_logits():
    with pytest.raises(ValueError, match=r"range from -3 to 4.*softmax\(dim=1\)"):
        losses.lovasz_softmax(torch.tensor([-3.0, 4.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1))


def test_lovasz_softmax_shows_a_nan_probability():
    probabilities = torch.full((1, 2, 3, 3), 0.5)
    probabilities[0, 1, 1, 1] = math.nan
    assert losses.lovasz_softmax(probabilities, torch.ones(1, 3, 3)).isnan()


# ---- entropy


def test_entropy_losses_are_the_normalised_entropy_of_the_formula():
    logits = maps(2, 5, 3, 4)
    rows = [log_softmax_by_hand(row) for row in pixels(logits)]
    want = sum(-sum(math.exp(v) * v for v in row) / math.log(5) for row in rows) / len(rows)
    close(losses.entropy_loss_from_logits(logits), want)
    close(losses.entropy_map(logits.softmax(dim=1)).sum(dim=1).mean(), want)


def test_entropy_is_one_for_equal_classes_and_zero_for_a_certain_one():
    equal, certain = torch.zeros(1, 7, 2, 3), torch.zeros(1, 7, 2, 3)
    certain[:, 2] = 1e4
    certain.requires_grad_()
    close(losses.entropy_loss_from_logits(equal), 1.0, 1e-6)
    assert is_zero_with_zero_gradient(losses.entropy_loss_from_logits(certain), certain)


def test_entropy_gradients_are_those_of_the_formula():
    x = maps(1, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(losses.entropy_loss_from_logits, x)
    assert torch.autograd.gradcheck(losses.entropy_map, x.detach().softmax(dim=1).requires_grad_())


def test_entropy_needs_two_classes():
    for loss in (losses.entropy_map, losses.entropy_loss_from_logits):
        with pytest.raises(ValueError, match=r"at least 2 classes, got scores of shape \(1, 1, 2, 2\)"):
            loss(torch.ones(1, 1, 2, 2))


# ---- LSR


def test_lsr_is_the_formula():
    logits = maps(2, 4, 3, 3)
    s = [-sum(log_softmax_by_hand(row)) / 4 for row in pixels(logits)]
    close(losses.lsr(logits, threshold=3.0), sum((v / 3 - 1) * v for v in s) / len(s))
    close(losses.lsr(logits, threshold=0.0), sum(s) / len(s))


def test_lsr_has_the_gradient_of_a_parabola_around_the_threshold():
    x = maps(2, 4, 3, 3, scale=12).requires_grad_()
    s = -x.log_softmax(dim=1).mean(dim=1)
    assert s.min() < 10 < s.max()
    (want,) = torch.autograd.grad(((s - 10) ** 2 / 20).mean(), x)
    (got,) = torch.autograd.grad(losses.lsr(x), x)
    close(got, want)


def test_lsr_refuses_a_negative_threshold():
    with pytest.raises(ValueError, match="at least 0 nats, got -1"):
        losses.lsr(torch.zeros(1, 2, 2, 2), threshold=-1)


# ---- berHu


def berhu_by_hand(prediction, target, valid):
    d = [abs(p - z) for p, z, v in zip(prediction.flatten().tolist(), target.flatten().tolist(), valid.flatten().tolist()) if v]
    c = 0.2 * max(d)
    return sum(v if v <= c else (v * v + c * c) / (2 * c) for v in d) / len(d)


def test_berhu_is_the_formula_with_and_without_a_mask():
    prediction, target = maps(2, 1, 3, 5), maps(2, 3, 5, seed=1)
    close(losses.berhu(prediction, target), berhu_by_hand(prediction, target, torch.ones(2, 3, 5)))
    valid = maps(2, 3, 5, seed=2) > 0
    valid.view(-1)[(prediction[:, 0] - target).abs().argmax()] = False  # a masked outlier must not set c
    close(losses.berhu(prediction, target, valid), berhu_by_hand(prediction, target, valid))


def test_berhu_gradient_treats_the_threshold_as_a_constant():
    prediction = maps(1, 1, 2, 4).requires_grad_()
    target = maps(1, 2, 4, seed=1)
    difference = (prediction.detach()[:, 0] - target).flatten().tolist()
    c = 0.2 * max(map(abs, difference))
    want = [(math.copysign(1, v) if abs(v) <= c else v / c) / 8 for v in difference]
    (got,) = torch.autograd.grad(losses.berhu(prediction, target), prediction)
    close(got.flatten(), want)


def test_berhu_of_an_exact_prediction_or_an_empty_mask_is_zero():
    x = torch.rand(2, 1, 3, 4, requires_grad=True)
    assert is_zero_with_zero_gradient(losses.berhu(x, x.detach()[:, 0]), x)
    unknown = torch.full((2, 3, 4), math.nan)
    assert is_zero_with_zero_gradient(losses.berhu(x, unknown, torch.zeros(2, 3, 4, dtype=torch.bool)), x)


def test_berhu_does_not_see_masked_values():
    x, target = torch.rand(1, 1, 2, 3, requires_grad=True), torch.rand(1, 2, 3)
    valid = torch.tensor([[[True, True, False], [True, False, True]]])
    (want,) = torch.autograd.grad(losses.berhu(x, target, valid), x)
    for value in (math.nan, math.inf, 1e9):
        (got,) = torch.autograd.grad(losses.berhu(x, torch.where(valid, target, value), valid), x)
        assert torch.equal(got, want) and (got[:, 0][~valid] == 0).all()


def test_berhu_refuses_other_shapes_with_both_of_them():
    with pytest.raises(ValueError, match=r"target has shape \(2, 1, 3, 4\).*\(2, 1, 3, 4\) needs \(2, 3, 4\)"):
        losses.berhu(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4))
    with pytest.raises(ValueError, match=r"valid has shape \(3, 4\)"):
        losses.berhu(torch.zeros(2, 1, 3, 4), torch.zeros(2, 3, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\), got \(2, 3, 4\)"):
        losses.berhu(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


# ---- consistency


def consistency_by_hand(logits, reference, threshold):
    total, confident = 0.0, 0
    rows = pixels(logits)
    for row, other in zip(rows, pixels(reference)):
        q = [math.exp(v) for v in log_softmax_by_hand(other)]
        if max(q) >= threshold:
            confident += 1
            total -= log_softmax_by_hand(row)[q.index(max(q))]
    return total / len(rows), confident / len(rows)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9])
def test_consistency_is_the_formula(threshold):
    logits, reference = maps(2, 4, 3, 5), maps(2, 4, 3, 5, seed=1)
    loss, share = losses.consistency_loss(logits, reference, threshold)
    want, want_share = consistency_by_hand(logits, reference, threshold)
    assert (want_share == 1) == (threshold == 0) and want_share > 0
    close(loss, want)
    close(share, want_share)


def test_consistency_teaches_the_first_view_only():
    x, reference = maps(1, 3, 2, 3).requires_grad_(), maps(1, 3, 2, 3, seed=1).requires_grad_()
    loss, share = losses.consistency_loss(x, reference, 0.5)
    loss.backward()
    assert x.grad.abs().sum() > 0 and reference.grad is None and not share.requires_grad
    assert torch.autograd.gradcheck(lambda v: losses.consistency_loss(v, reference, 0.5)[0], x)


def test_consistency_keeps_a_pixel_exactly_at_the_threshold():
    x = torch.zeros(1, 2, 1, 3)
    assert losses.consistency_loss(x, x, 0.5)[1] == 1


def test_consistency_without_a_confident_pixel_is_zero():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss, share = losses.consistency_loss(x, torch.zeros(2, 3, 4, 5), 0.5)
    assert share.item() == 0 and is_zero_with_zero_gradient(loss, x)


def test_consistency_refuses_other_shapes_and_thresholds():
    x = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 5\) and reference_logits \(1, 3, 8, 10\)"):
        losses.consistency_loss(x, torch.zeros(1, 3, 8, 10))
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 95"):
        losses.consistency_loss(x, x, 95)


# ---- discriminator, upsampling


@pytest.mark.parametrize("domain", [0, 1])
def test_domain_bce_is_the_formula(domain):
    x = maps(2, 1, 3, 2)
    sign = 1 if domain == 0 else -1
    want = sum(math.log1p(math.exp(sign * v)) for v in x.flatten().tolist()) / x.numel()
    close(losses.domain_bce(x, domain), want)


def test_domain_bce_refuses_another_domain():
    with pytest.raises(ValueError, match="0 or 1, got 2"):
        losses.domain_bce(torch.zeros(1, 1, 2, 2), 2)


def test_upsample_keeps_the_corners_when_they_are_aligned_and_the_edges_otherwise():
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    close(losses.upsample(x, (1, 3), align_corners=True).flatten(), [0.0, 0.5, 1.0])
    close(losses.upsample(x, (1, 4), align_corners=False).flatten(), [0.0, 0.25, 0.75, 1.0])
    assert torch.equal(losses.upsample(x, (1, 2), align_corners=True), x)


# ---- precision


LABELS = label_maps(3, 2, 5, 7)
DEPTH = maps(2, 5, 7, seed=3).float()
# Each as a function of one input, which is in [0, 1] so that it serves as logits, depth and probabilities.
LOSSES = {
    "cross_entropy": lambda x: losses.cross_entropy(x, labels=LABELS),
    "lovasz_softmax": lambda x: losses.lovasz_softmax(x, LABELS),
    "entropy_map": lambda x: losses.entropy_map(x).sum(),
    "entropy_loss_from_logits": losses.entropy_loss_from_logits,
    "lsr": lambda x: losses.lsr(logits=x),
    "berhu": lambda x: losses.berhu(x[:, :1], DEPTH),
    "consistency_loss": lambda x: losses.consistency_loss(x, -x, 0.34)[0],
    "domain_bce": lambda x: losses.domain_bce(x, 1),
    "upsample": lambda x: losses.upsample(x, (9, 9), align_corners=True).square().sum(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_compute_in_float32_under_autocast(name, dtype):
    x = maps(2, 3, 5, 7).sigmoid().to(dtype).requires_grad_()
    same = x.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](x)
    want = LOSSES[name](same)
    assert loss.dtype == torch.float32 and torch.equal(loss, want)
    loss.backward()
    want.backward()
    assert x.grad.dtype == dtype and torch.equal(x.grad, same.grad.to(dtype))
