"""A step on the device is the step of the CPU: every method, and every switch of TRAIN that changes how it is computed."""

import copy
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from on_device import options
from tiny import TINY_NETWORK, random_batch

from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.objectives import METHODS
from dada.model import build_model
from dada.model.compiling import compile_network
from dada.training.prefetch import Prefetcher
from dada.training.rng import rng_state, seed_all, set_rng_state
from dada.training.trainer import build_trainer

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
ASSOCIATION = ("CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=0")
MIXING = (
    *("TRAIN.DA_METHOD=source_only", "SELF_TRAINING.LAMBDA_MIX=1", "SELF_TRAINING.LAMBDA_MIC=1"),
    *("SELF_TRAINING.COLOR_JITTER=0.2", "SELF_TRAINING.BLUR=0.5", "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True"),
)
SWITCHES = {
    "channels last": ("TRAIN.CHANNELS_LAST=True",),
    "recomputation": ("TRAIN.MODEL=resnet-18", "TRAIN.RECOMPUTE=True"),
    "two sets of statistics": ("TRAIN.DOMAIN_BN=True",),
}
# Relative, of the value of a term and of the norm of all gradients: float32 in another order, through a whole network.
VALUE, GRADIENT = 1e-3, 2e-2


def step(device, *pairs, iterations=1):
    """A trainer after some iterations on batches that do not depend on the device, and the values of each."""
    cfg_from_list([f"TRAIN.MODEL={TINY_NETWORK}", "TRAIN.LAMBDA_LOVASZ=0.5", *options(device), *pairs])
    seed_all(1)
    trainer = build_trainer(cfg, CPU)  # the same weights and draws everywhere
    state = copy.deepcopy(trainer.network.state_dict())
    seed_all(1)
    trainer = build_trainer(cfg, device)
    trainer.network.load_state_dict(state)
    discriminators = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (p for a in trainer.objective.adversaries for p in a.discriminator.parameters()):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=discriminators))
    batches = [
        (random_batch(2, (64, 64), 16, 2 * n), random_batch(2, (64, 64), 16, 2 * n + 1, labelled=False))
        for n in range(iterations)
    ]
    if device.type == "cuda":
        batches = [(source.pin_memory(), target.pin_memory()) for source, target in batches]
    prefetcher = Prefetcher(iter(batches), device)
    trainer.meanwhile = prefetcher.request
    return trainer, prefetcher


def gradient(trainer):
    gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    return torch.cat([g.double().cpu().flatten() for g in gradients])


def compare(device, record_property, *pairs, value=VALUE, limit=GRADIENT):
    results = []
    for where in (CPU, device):
        trainer, batches = step(where, *pairs)
        values = trainer.iterate(0, batches).values
        results.append((values, gradient(trainer)))
    (want, want_gradient), (got, got_gradient) = results
    assert got.keys() == want.keys() and len(want_gradient) == len(got_gradient) > 0
    worst = max(abs(got[name] - want[name]) / max(abs(want[name]), 1e-3) for name in want)
    apart = ((got_gradient - want_gradient).norm() / want_gradient.norm()).item()
    record_property("error of the terms", worst)
    record_property("error of the gradient", apart)
    assert worst <= value and apart <= limit


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method_is_that_of_the_cpu(method, device, record_property):
    depth = ("USE_DEPTH=True",) if method == "DADA" else ()
    compare(device, record_property, f"TRAIN.DA_METHOD={method}", "TRAIN.MULTI_LEVEL=True", *depth)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_step_with_association_and_a_switch_is_that_of_the_cpu(switch, device, record_property):
    compare(device, record_property, *ASSOCIATION, *SWITCHES[switch])


def test_a_step_in_bfloat16_is_near_that_of_the_cpu(device, record_property):
    compare(device, record_property, "TRAIN.DA_METHOD=MinEnt", "TRAIN.BF16=True", value=3e-2, limit=0.3)


def test_self_training_runs_and_teaches(device):
    trainer, batches = step(device, *MIXING, iterations=2)
    for number in range(2):
        values = trainer.iterate(number, batches).values
    assert all(torch.tensor(value).isfinite() for value in values.values())
    assert gradient(trainer).norm() > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_the_device_in_two_places(method, record_property):
    device = torch.device("cuda", 0)
    trainer, batches = step(device, f"TRAIN.DA_METHOD={method}", *ASSOCIATION, iterations=3)
    trainer.iterate(0, batches)  # libraries start
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            trainer.iterate(1, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in heard if "synchroniz" in str(w.message))
    record_property("waits", dict(waits))
    assert sum(waits.values()) <= 2 + len(trainer.objective.adversaries)


def test_a_compiled_network_computes_what_the_network_computes(device):
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # code for a CPU takes a minute
    torch._dynamo.reset()
    plain = build_model("resnet-18", 5).train().to(device)
    compiled = copy.deepcopy(plain)
    compile_network(compiled, backend)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    for network in (plain, compiled):
        network(image).logits.square().mean().backward()
    assert compiled._compiled_call_impl is not None
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters()):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-2, atol=1e-3 * a.grad.abs().max().item(), msg=name)
    torch._dynamo.reset()


def test_generators_are_put_back(device):
    state = rng_state(device)
    drawn = torch.rand(3, device=device)
    set_rng_state(state, device)
    assert torch.equal(drawn, torch.rand(3, device=device))
