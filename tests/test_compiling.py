"""A compiled network computes what the network computes, and one that cannot be compiled goes on as it is."""

import copy
import logging

import pytest
import torch
from tiny import TinyNetwork, random_batch
from torch import nn

from dada.domain_adaptation.objectives import Objective, Term, source_cross_entropy, target_entropy
from dada.model import build_model
from dada.model.batch_norm import SOURCE, TARGET, DomainBatchNorm2d, select_domain
from dada.model.compiling import compile_network
from dada.training.trainer import Trainer

# Traces and differentiates as the real one does, and generates no code: a second in place of a minute.
BACKEND = "aot_eager"


class Remembering(TinyNetwork):
    """With all that a trial must put back: statistics of batch norm, and a dropout that draws from the generator."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(self.stem, DomainBatchNorm2d(nn.BatchNorm2d(6)), nn.Dropout(0.2))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(network: nn.Module, autocast: bool) -> nn.Module:
    terms = [Term("seg", 1.0, source_cross_entropy), Term("ent", 0.5, target_entropy)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = Trainer(network, Objective(terms, []), optimizer, max_iterations=4, autocast=autocast)
    torch.manual_seed(3)
    for number in range(2):
        batches = random_batch(size=(32, 40), seed=number), random_batch(size=(24, 24), seed=number + 9)
        trainer.iterate(number, iter([batches]))
    return network


@pytest.mark.parametrize("autocast", [False, True])
def test_a_run_with_two_domains_sizes_and_dropout_is_the_same_compiled(autocast):
    plain = Remembering()
    compiled = copy.deepcopy(plain)
    compile_network(compiled, BACKEND)
    state, wanted = trained(compiled, autocast).state_dict(), trained(plain, autocast).state_dict()
    assert compiled._compiled_call_impl is not None and list(state) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(state[name], value, msg=name)


@pytest.mark.parametrize("problem", ["in the forward pass", "in the backward pass"])
def test_a_network_that_cannot_be_compiled_runs_as_it_is_and_says_so_once(problem, caplog):
    compiled_graphs = []

    def backend(graph, inputs):
        compiled_graphs.append(graph)
        raise RuntimeError("no compiler on this machine")

    def backward_fails(graph, inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def refuse(graph, inputs):
            compiled_graphs.append(graph)
            raise RuntimeError("no compiler on this machine")

        return aot_autograd(fw_compiler=lambda g, i: make_boxed_func(g.forward), bw_compiler=refuse)(graph, inputs)

    plain = Remembering()
    network = copy.deepcopy(plain)
    compile_network(network, backend if problem == "in the forward pass" else backward_fails)
    with caplog.at_level(logging.WARNING, logger="dada.model.compiling"):
        state, wanted = trained(network, False).state_dict(), trained(plain, False).state_dict()
    assert compiled_graphs
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    messages = [record.getMessage() for record in caplog.records if record.name == "dada.model.compiling"]
    assert len(messages) == 1 and "TRAIN.COMPILE" in messages[0] and "no compiler on this machine" in messages[0]


def test_an_image_of_a_wrong_shape_is_still_the_users_error():
    network = build_model("resnet-18", 5).train()
    compile_network(network, BACKEND)
    with pytest.raises(ValueError, match="expected a batch of images"):
        network(torch.zeros(3, 32, 32))


def test_a_copy_of_a_compiled_network_is_a_network_of_its_own():
    network = Remembering()
    compile_network(network, BACKEND)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for model in (network, other):
        select_domain(model, SOURCE)
    image = torch.randn(1, 3, 16, 16)
    assert not other(image).logits.any() and network(image).logits.any()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_of_the_real_compiler_agree_with_recompute_and_domains(recompute):
    plain = build_model("resnet-18", 5, domain_bn=True).train()
    plain.set_recompute(recompute)
    compiled = copy.deepcopy(plain)
    compile_network(compiled)
    for domain in (SOURCE, TARGET):
        image = torch.randn(2, 3, 64, 64)
        for network in (plain, compiled):
            select_domain(network, domain)
            network(image).logits.square().mean().backward()
    assert compiled._compiled_call_impl is not None
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters()):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, a), b in zip(plain.named_buffers(), compiled.buffers()):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)
