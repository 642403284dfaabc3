"""Products of the association in less than float32: only operands are rounded, and never where an argmax is decided."""

from contextlib import contextmanager

import pytest
import torch
from test_streaming_association import random_case, run

from dada.domain_adaptation.association import cycle_search, pixels, products
from dada.matmul_precision import full_float32_products


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_products_that_decide_an_argmax_leave_tf32_out_and_put_the_setting_back(setting):
    torch.set_float32_matmul_precision(setting)
    try:
        with pytest.raises(ZeroDivisionError), full_float32_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has one name for the setting")
def test_the_newer_name_of_the_setting_is_respected_as_well():
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    try:
        with full_float32_products():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def halves(monkeypatch):
    """Products of float32 as CUDA does them under "medium": operands rounded to bfloat16, summed in float32."""
    for module in (products, pixels):
        monkeypatch.setattr(module, "rounded_to_half", lambda x: x.dtype in (torch.bfloat16, torch.float32))


def test_half_products_round_the_operands_and_nothing_else(halves):
    g = torch.Generator().manual_seed(0)
    a, b, total = (torch.randn(shape, generator=g) for shape in ((5, 7), (7, 3), (5, 3)))
    want = a.bfloat16().double() @ b.bfloat16().double()
    got = products.mm(a, b.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(products.addmm_(total.clone(), a, b).double(), total.double() + want, rtol=1e-6, atol=1e-6)
    assert products.mm(a.double(), b.double()).equal(a.double() @ b.double())


@pytest.fixture
def trials():
    products._gives_float32.cache_clear()
    yield
    products._gives_float32.cache_clear()


@pytest.mark.parametrize("refusal", ["raises", "rounds"])
def test_products_that_torch_has_but_does_not_run_are_found_out_once(halves, trials, refusal, monkeypatch):
    tried = []

    def refuses(total, a, b):
        tried.append(total.shape)
        if refusal == "raises":
            raise RuntimeError("out_dtype is not supported")
        return total.add_((a.float() @ b.float()).bfloat16())

    def works(out, a, b):
        return torch.mm(a.float(), b.float(), out=out)

    monkeypatch.setattr(products, "_half_addmm", refuses)
    monkeypatch.setattr(products, "_half_mm", works)
    g = torch.Generator().manual_seed(0)
    a, b, total = (torch.randn(shape, generator=g) for shape in ((5, 7), (7, 3), (5, 3)))
    want = a.bfloat16().double() @ b.bfloat16().double()
    for _ in range(2):
        torch.testing.assert_close(products.mm(a, b).double(), want, rtol=1e-6, atol=1e-6)
        got = products.addmm_(total.clone(), a, b).double()
        torch.testing.assert_close(got, total.double() + want, rtol=1e-6, atol=1e-6)
    assert tried == [(16, 16)]
    cpu = torch.device("cpu")
    assert products._gives_float32(works, cpu) and not products._gives_float32(refuses, cpu)


@pytest.mark.parametrize("metric", ["cos", "kl"])
def test_half_products_move_gradients_by_their_rounding(halves, metric, monkeypatch):
    @contextmanager
    def full():
        with monkeypatch.context() as patch:
            for module in (products, pixels):
                patch.setattr(module, "rounded_to_half", lambda x: x.dtype is torch.bfloat16)
            yield

    monkeypatch.setattr(cycle_search, "full_float32_products", full)
    source, target, labels = random_case(0, 1, 64, (20, 20), (19, 21), metric)
    source, target = source.float(), target.float()
    # Not aggregated, the cycles are those of the maps as they are: none may differ.
    for aggregate in (False, True):
        want, want_grads = run(source, target, labels, metric=metric, aggregate=aggregate, impl="dense")
        got, grads = run(source, target, labels, metric=metric, aggregate=aggregate, impl="streaming")
        if not aggregate:
            assert got.closed.item() == want.closed.item() and got.covered.item() == want.covered.item()
        assert not torch.equal(got.loss, want.loss)
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-2, atol=0)
        for grad, want_grad in zip(grads, want_grads):
            assert (grad - want_grad).norm() < 0.05 * want_grad.norm()
