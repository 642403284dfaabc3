"""The learning rate as a function of the iteration."""

import numpy as np
import pytest
import torch
from golden_cases import golden_cases

from dada.training.schedule import poly_lr, set_poly_lr


def optimizer_of(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": r} for r in rates], lr=1.0)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_poly_is_the_formula():
    for iteration in (0, 1, 37, 99):
        assert poly_lr(0.5, iteration, 100, 0.9) == pytest.approx(0.5 * (1 - iteration / 100) ** 0.9, rel=1e-14)
    assert poly_lr(0.5, 40, 100, 2.0) == pytest.approx(0.5 * 0.36)


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("iteration", [100, 101, 10**9])
def test_the_rate_is_a_real_zero_at_and_past_the_end(power, iteration):
    rate = poly_lr(0.5, iteration, 100, power)
    assert isinstance(rate, float) and rate == 0


def test_power_zero_keeps_the_rate():
    assert [poly_lr(0.5, i, 10, power=0) for i in (0, 9, 10, 11)] == [0.5] * 4


def test_warm_up_rises_linearly_on_top_of_the_decay():
    def with_warmup(i):
        return poly_lr(1.0, i, 1000, 1.0, warmup=100)

    assert with_warmup(0) == pytest.approx(1e-6)
    assert with_warmup(50) == pytest.approx(0.5 * 0.95, rel=1e-5)
    assert with_warmup(99) < poly_lr(1.0, 99, 1000, 1.0)
    for i in (100, 101, 700, 1000):
        assert with_warmup(i) == poly_lr(1.0, i, 1000, 1.0)


def test_warm_up_may_be_longer_than_a_short_run():
    rates = [poly_lr(1.0, i, 10, warmup=1500) for i in range(12)]
    assert 0 < rates[0] < 1e-5 and max(rates) < 0.01 and rates[10:] == [0, 0]


def test_each_group_follows_its_own_base_rate():
    optimizer = optimizer_of(0.1, 1.0)
    for iteration in (0, 5, 60, 100, 7):  # any order: nothing is remembered
        set_poly_lr(optimizer, iteration, 100, power=0.9, warmup=10)
        assert rates_of(optimizer) == [poly_lr(base, iteration, 100, 0.9, 10) for base in (0.1, 1.0)]


@pytest.mark.parametrize("set_before", [True, False])
def test_an_optimizer_resumes_the_same_rates_whether_they_were_set_before_its_state_was_loaded_or_not(set_before):
    trained, resumed = optimizer_of(0.1, 1.0), optimizer_of(0.1, 1.0)
    set_poly_lr(trained, 60, 100)
    if set_before:
        set_poly_lr(resumed, 0, 100)
    resumed.load_state_dict(trained.state_dict())
    for optimizer in (trained, resumed):
        set_poly_lr(optimizer, 61, 100)
    assert rates_of(resumed) == rates_of(trained) == [poly_lr(base, 61, 100) for base in (0.1, 1.0)]


@pytest.mark.parametrize("file", ["advent_schedule.npz", "plca_schedule.npz"])
def test_rates_agree_with_golden(file):
    for case in golden_cases(file):
        settings = case.settings
        want = case.arrays["lr"].reshape(len(case.arrays["iters"]), -1)
        multipliers = settings.get("lr_mult") or [1, 10][: want.shape[1]]
        optimizer = optimizer_of(*(settings["base_lr"] * m for m in multipliers))
        got = []
        for iteration in case.arrays["iters"]:
            set_poly_lr(optimizer, int(iteration), settings["max_iter"], settings["power"])
            got.append(rates_of(optimizer))
        np.testing.assert_allclose(got, want, rtol=1e-9)
