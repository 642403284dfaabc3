"""Batch norms of each domain's own (PLCA's DOMAIN_BN): which one a step and a test use, and what weights they take."""

import copy

import pytest
import torch
from tiny import TINY_NETWORK, random_batch

from dada.build import build_network
from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.objectives import build_objective
from dada.domain_adaptation.step import Step
from dada.evaluation.predictor import Predictor
from dada.model import build_model, load_weights
from dada.model.batch_norm import SOURCE, TARGET, DomainBatchNorm2d, select_domain, without_domain

K = 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shared():
    """A small network with one set of batch norms for all; never changed."""
    torch.manual_seed(0)
    return build_model("resnet-18", K, head_bias=False)


@pytest.fixture
def own(shared):
    """The same network with batch norms for each domain."""
    network = build_model("resnet-18", K, head_bias=False, domain_bn=True)
    load_state(network, shared.state_dict())
    return network


def load_state(network, state):
    network.load_state_dict({name: state[without_domain(name)] for name in network.state_dict()})


def means(network, domain):
    norms = (module for module in network.modules() if isinstance(module, DomainBatchNorm2d))
    return torch.cat([norm.norm_layers[domain].running_mean for norm in norms]).clone()


def test_a_step_uses_the_batch_norms_of_the_domain_whatever_order_terms_ask_in(own):
    own.train()
    step = Step(own, random_batch(seed=1), random_batch(seed=2))
    start = means(own, SOURCE), means(own, TARGET)
    _ = step.target_outputs
    assert torch.equal(means(own, SOURCE), start[SOURCE]) and not torch.equal(means(own, TARGET), start[TARGET])
    after_target = means(own, TARGET)
    _ = step.source_outputs
    assert not torch.equal(means(own, SOURCE), start[SOURCE]) and torch.equal(means(own, TARGET), after_target)
    _ = step.first_view_outputs
    assert not torch.equal(means(own, TARGET), after_target)


@pytest.mark.parametrize(
    "options", [["TRAIN.DA_METHOD=DADA", "USE_DEPTH=True"], ["CONTRASTIVE_LEARNING=True"]], ids=["DADA", "PLCA"]
)
def test_a_method_trains_the_batch_norms_of_both_domains(options):
    cfg_from_list([f"TRAIN.MODEL={TINY_NETWORK}", "TRAIN.DOMAIN_BN=True", *options])
    network = build_network(cfg, "").train()
    objective = build_objective(cfg, CPU)
    step = Step(network, random_batch(2, (64, 64), 16, 1), random_batch(2, (64, 64), 16, 2, labelled=False))
    objective(step, 0).total.backward()
    trained = {SOURCE: set(), TARGET: set()}
    for name, parameter in network.named_parameters():
        if ".norm_layers." in name:
            domain = int(name.split(".norm_layers.")[1].split(".")[0])
            trained[domain].add(parameter.grad is not None)
    assert trained == {SOURCE: {True}, TARGET: {True}}


def test_batch_norms_of_a_target_that_nothing_reads_are_refused():
    cfg_from_list(["TRAIN.DOMAIN_BN=True"])
    with pytest.raises(ValueError, match="TRAIN.DOMAIN_BN .* no term of TRAIN.DA_METHOD source_only reads the target"):
        build_objective(cfg, CPU)


def test_a_prediction_uses_those_of_the_target(own):
    own.eval()
    with torch.no_grad():
        for norm in (m for m in own.modules() if isinstance(m, DomainBatchNorm2d)):
            norm.norm_layers[TARGET].running_mean.add_(0.1)
    select_domain(own, SOURCE)
    image = random_batch().image
    predicted = Predictor([own])(image, (32, 40))
    select_domain(own, TARGET)
    with torch.no_grad():
        expected = torch.nn.functional.interpolate(own(image).logits, (32, 40), mode="bilinear", align_corners=True).softmax(
            dim=1
        )
    torch.testing.assert_close(predicted, expected)
    select_domain(own, SOURCE)
    with torch.no_grad():
        assert not torch.allclose(own(image).features, Step(own, None, random_batch()).target_outputs.features)


def test_recomputed_blocks_take_the_batch_norms_they_were_first_computed_with(own):
    gradients, statistics = [], []
    for recompute in (False, True):
        network = copy.deepcopy(own).train()
        with torch.no_grad():
            for norm in (m for m in network.modules() if isinstance(m, DomainBatchNorm2d)):
                norm.norm_layers[TARGET].weight.mul_(1.5)
        network.set_recompute(recompute)
        step = Step(network, random_batch(seed=1), random_batch(seed=2))
        loss = step.source_outputs.logits.square().mean() + step.target_outputs.logits.mean()
        loss.backward()  # after the target has been selected
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        statistics.append([means(network, domain) for domain in (SOURCE, TARGET)])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for first, second in zip(*statistics):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ["resnet-18", TINY_NETWORK])
def test_weights_that_know_no_domains_start_both(name, tmp_path):
    single = build_model(name, K)
    with torch.no_grad():
        for value in single.state_dict().values():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value)
    torch.save(single.state_dict(), tmp_path / "weights.pth")
    network = build_model(name, K, domain_bn=True, weights=tmp_path / "weights.pth")
    for key, value in network.state_dict().items():
        assert torch.equal(value, single.state_dict()[without_domain(key)]), key


def test_imagenet_weights_of_a_timm_encoder_start_both(tmp_path):
    import timm

    encoder_name = TINY_NETWORK.removeprefix("timm:")
    classifier = timm.create_model(encoder_name, pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "imagenet.pth")
    network = build_model(TINY_NETWORK, K, domain_bn=True)
    report = load_weights(network, tmp_path / "imagenet.pth")
    assert not [key for key in report.missing if key.startswith("encoder.")]
    state = network.state_dict()
    for domain in (SOURCE, TARGET):
        assert torch.equal(state[f"encoder.bn1.norm_layers.{domain}.weight"], classifier.state_dict()["bn1.weight"])


def test_weights_of_each_domain_come_back_as_they_were_written(own, tmp_path):
    with torch.no_grad():
        for norm in (m for m in own.modules() if isinstance(m, DomainBatchNorm2d)):
            norm.norm_layers[TARGET].running_mean.uniform_(-1, 1)
    torch.save({"state_dict": own.state_dict(), "iter": 3}, tmp_path / "own.pth")
    again = build_model("resnet-18", K, head_bias=False, domain_bn=True, weights=tmp_path / "own.pth")
    for key, value in own.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_plcas_file_with_domains_is_read_under_its_own_names(tmp_path):
    network = build_model("resnet-18", 16, head_bias=False, domain_bn=True)
    published = {}
    for key, value in network.state_dict().items():
        branch = key.removeprefix("layer6.conv2d_list.").split(".")
        named = f"classifier.0.convs.{branch[0]}.0.{branch[1]}" if key.startswith("layer6.") else f"backbone.{key}"
        published[named] = torch.full_like(value, 3) if ".norm_layers.1." in key else value
    torch.save({"weights": published}, tmp_path / "plca.weights")
    load_weights(network, tmp_path / "plca.weights")
    assert network.bn1.norm_layers[TARGET].weight.eq(3).all() and not network.bn1.norm_layers[SOURCE].weight.eq(3).any()


def test_a_file_with_domains_is_refused_by_a_network_without_and_the_option_is_named(own, shared, tmp_path):
    torch.save(own.state_dict(), tmp_path / "own.pth")
    with pytest.raises(ValueError, match="batch norm per domain: set TRAIN.DOMAIN_BN to True"):
        load_weights(copy.deepcopy(shared), tmp_path / "own.pth")


def test_a_network_without_batch_norm_cannot_have_them_per_domain():
    with pytest.raises(ValueError, match="TimmSegmenter has no batch norm to give each domain a copy of"):
        build_model("timm:convnext_atto", K, output_stride=32, domain_bn=True)
