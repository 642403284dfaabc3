"""What the project does on a GPU, at the size of a test: a step of every method, and all that runs trained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from tiny import TINY_NETWORK, TinyNetwork, random_batch
from torch.utils._python_dispatch import TorchDispatchMode

from dada.build import build_network
from dada.commands.export import Exportable
from dada.config import cfg, cfg_from_list, reset
from dada.domain_adaptation import adversarial, cycle_association, losses
from dada.domain_adaptation.association import form, operators
from dada.domain_adaptation.objectives import METHODS, build_objective
from dada.domain_adaptation.teacher import Teacher
from dada.evaluation.criteria import label_free_criteria
from dada.evaluation.cycle_closure import cycle_closure
from dada.evaluation.evaluator import evaluate
from dada.evaluation.tester import build_predictor
from dada.label_sets import label_set
from dada.model.discriminator import FCDiscriminator
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB
from dada.segmenter import Segmenter
from dada.training.adabn import adapt_batch_norm
from dada.training.trainer import Trainer, build_optimizer, build_trainer, check_weights

K, SIDE = 16, (32, 48)
SMALL = [f"NUM_CLASSES={K}", "TRAIN.LAMBDA_LOVASZ=0.5", "SELF_TRAINING.START=0"]
MOBILE, RESNET = f"TRAIN.MODEL={TINY_NETWORK}", "TRAIN.MODEL=resnet-18"
ASSOCIATION = ["CONTRASTIVE_LEARNING=True", "TRAIN.LAMBDA_CONSISTENCY=1", "TRAIN.LAMBDA_ENTROPY=0.1"]
SELF_TRAINING = ["SELF_TRAINING.LAMBDA_MIX=1", "SELF_TRAINING.LAMBDA_MIC=1", "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True"]

STEPS: dict[str, list[str]] = {
    **{method: [f"TRAIN.DA_METHOD={method}", "TRAIN.MULTI_LEVEL=True"] for method in METHODS},
    **{f"{method}, association": [f"TRAIN.DA_METHOD={method}", *ASSOCIATION] for method in METHODS},
    "association, small maps": [*ASSOCIATION],
    "DADA, depth": ["TRAIN.DA_METHOD=DADA", "USE_DEPTH=True"],
    "depth of everything": ["USE_DEPTH=True", "LEGACY.UNMASKED_DEPTH=True"],
    "self-training": SELF_TRAINING,
    "self-training beside a method": ["TRAIN.DA_METHOD=MinEnt", "TRAIN.MULTI_LEVEL=True", *ASSOCIATION, *SELF_TRAINING],
    "two steps an iteration": ["TRAIN.ITER_SIZE=2", "TRAIN.OPTIMIZER=AdamW"],
    "Caffe's images": [RESNET, "TRAIN.IMG_MODE=BGR", "SELF_TRAINING.LAMBDA_MIC=1"],
    "batch norms of each domain": [RESNET, "TRAIN.DOMAIN_BN=True", "TRAIN.DA_METHOD=MinEnt", *SELF_TRAINING],
    "recomputed": [RESNET, "TRAIN.RECOMPUTE=True"],
    "bfloat16": [RESNET, "TRAIN.BF16=True", "TRAIN.DA_METHOD=MinEnt", *ASSOCIATION],
    "bfloat16, recomputed": [RESNET, "TRAIN.BF16=True", "TRAIN.RECOMPUTE=True"],
    "channels last": [MOBILE, "TRAIN.CHANNELS_LAST=True", *ASSOCIATION],
    "a transformer": ["TRAIN.MODEL=timm:test_vit", "TRAIN.OPTIMIZER=AdamW"],
}
TESTS: dict[str, list[str]] = {
    "evaluation": [],
    "evaluation, all options": ["TEST.FLIP=True", "TEST.SCALES=[0.75]", "TEST.SLIDE_CROP=[32,32]", "TRAIN.BF16=True"],
    "evaluation with aggregation": ["TEST.WITH_AGGREGATION=True", "TRAIN.DOMAIN_BN=True"],
    "evaluation of other classes": ["TEST.CLASS_RULE=count", "TEST.UPSAMPLE_VIA_INPUT=True", "LEGACY.LOGIT_ENSEMBLE=True"],
}

Work = Callable[[], object]


def works() -> dict[str, Callable[[torch.device], Work]]:
    """By name, what prepares a piece of work on a device. What it returns does the work, and can be called once."""
    others = (prediction, criteria, closure, export, batch_norm_statistics, check_before_saving)
    return {
        **{name: partial(iteration, options) for name, options in STEPS.items()},
        **{name: partial(evaluation, options) for name, options in TESTS.items()},
        **{work.__name__.replace("_", " "): work for work in others},
    }


@contextmanager
def fresh(name: str) -> Iterator[None]:
    """The cfg at its defaults, small discriminators, and forms that a GPU takes: host and device apart, no dense association."""
    dense = cycle_association.DENSE_ELEMENTS if "small maps" in name else 0
    with (
        mock.patch.object(form, "STATIC_DEVICES", ("cuda", "cpu")),
        mock.patch.object(cycle_association, "DENSE_ELEMENTS", dense),
        mock.patch.object(losses, "_host_knows", lambda x: False),
        mock.patch.object(adversarial, "FCDiscriminator", partial(FCDiscriminator, ndf=4)),
    ):
        reset()
        cfg_from_list(SMALL)
        try:
            yield
        finally:
            reset()


def iteration(options: list[str], device: torch.device) -> Work:
    cfg_from_list(options)
    real = any(option.startswith("TRAIN.MODEL") for option in options)
    trainer = build_trainer(cfg, device) if real else tiny_trainer(device)
    for group in (g for optimizer in trainer.optimizers for g in optimizer.param_groups):
        group["foreach"] = True  # torch's default on CUDA
    pairs = [(batch(0, device), batch(1, device)) for _ in range(cfg.TRAIN.ITER_SIZE)]
    return lambda: trainer.iterate(3, iter(pairs))


def tiny_trainer(device: torch.device) -> Trainer:
    """As `build_trainer`, of a network of three layers."""
    network = TinyNetwork(K, aux=cfg.TRAIN.MULTI_LEVEL, depth=cfg.USE_DEPTH).to(device)
    objective, optimizer = build_objective(cfg, device), build_optimizer(network, cfg)
    teacher = Teacher(network, 0.9) if objective.uses_teacher else None
    return Trainer(network, objective, optimizer, max_iterations=5, iter_size=cfg.TRAIN.ITER_SIZE, teacher=teacher)


def check_before_saving(device: torch.device) -> Work:
    return partial(check_weights, tiny_trainer(device), 1)


def evaluation(options: list[str], device: torch.device) -> Work:
    cfg_from_list(options)
    predictor = predictor_on(device, members=2, real="TEST.WITH_AGGREGATION=True" in options)
    return lambda: evaluate(predictor, [batch(0)], label_set(K), device, cfg.TEST.CLASS_RULE)


def prediction(device: torch.device) -> Work:
    cfg_from_list(["TEST.FLIP=True", "TEST.INPUT_SIZE_TARGET=[64,64]"])
    segmenter = Segmenter.__new__(Segmenter)  # without the file of a network
    segmenter.cfg, segmenter.device, segmenter.classes = cfg, device, label_set(K)
    segmenter.predictor = predictor_on(device)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    return lambda: segmenter.predict(pictures)


def criteria(device: torch.device) -> Work:
    return partial(label_free_criteria, predictor_on(device), batch(0).image, device)


def closure(device: torch.device) -> Work:
    network, pair = predictor_on(device).networks[0], (batch(0, device), batch(1, device))
    return partial(cycle_closure, network, [pair], K, with_truth=True)


def export(device: torch.device) -> Work:
    """The module that is exported, as Python runs it."""
    image = torch.zeros(1, 3, *SIDE, dtype=torch.uint8).to(device)
    cfg_from_list(["USE_DEPTH=True"])
    return partial(Exportable(predictor_on(device, real=True).networks[0], align_corners=True), image)


def batch_norm_statistics(device: torch.device) -> Work:
    return partial(adapt_batch_norm, predictor_on(device, real=True).networks[0], [batch(0, device).image])


def batch(seed: int, device: torch.device | str = "cpu"):
    return random_batch(2, SIDE, K, seed).to(device)


def predictor_on(device: torch.device, members: int = 1, real: bool = False):
    """Of three layers, or of a real network, where it is the network that something is done to."""
    cfg_from_list([MOBILE])
    networks = [(build_network(cfg, "") if real else TinyNetwork(K)).to(device).eval() for _ in range(members)]
    for network, normalization in zip(networks, (TORCHVISION_RGB, CAFFE_BGR)):  # as of an ensemble of different networks
        network.normalization = normalization
    return build_predictor(cfg, networks, [1.0] * members, device)


class Watch(TorchDispatchMode):
    """Sees every operator of torch that is called in the block, those inside the operators of the project too.

    What is defined by others, such as conv2d on tensors of inference mode, is seen as these.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "dada":
            with self:
                return getattr(operators, func._opname)._init_fn(*args, **kwargs)
        if func.namespace == "aten":
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return self.see(func, types, args, kwargs)

    def see(self, func: torch._ops.OpOverload, types: tuple, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Called in place of `func`."""
        raise NotImplementedError
