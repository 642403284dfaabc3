"""Small things that several test files train and test: a network, a batch, and a cfg for whole runs."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dada.build import build_network
from dada.config import cfg, cfg_from_list, plain_cfg, reset
from dada.dataset import Batch
from dada.domain_adaptation import adversarial, cycle_association
from dada.domain_adaptation.association import form
from dada.domain_adaptation.objectives import build_objective
from dada.model.discriminator import FCDiscriminator
from dada.model.outputs import Outputs
from dada.runs import save_snapshot
from dada.training.trainer import Trainer

# Small and quick: 12 batch norms, 0.2 M parameters.
TINY_NETWORK = "timm:test_efficientnet"


class TinyNetwork(nn.Module):
    """The network of the golden training runs: a convolution of stride 4, a ReLU and a 1x1 convolution a head.

    Args:
        num_classes: K.
        aux, depth: add the auxiliary head, or the one for depth.
    """

    def __init__(self, num_classes: int, *, aux: bool = False, depth: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.head_main = nn.Conv2d(6, num_classes, 1)
        self.head_aux = nn.Conv2d(6, num_classes, 1) if aux else None
        self.head_depth = nn.Conv2d(6, 1, 1) if depth else None

    def forward(self, image: Tensor) -> Outputs:
        features = self.stem(image).relu()
        heads = (self.head_aux, self.head_depth)
        return Outputs(self.head_main(features), features, *(None if h is None else h(features) for h in heads))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        heads = [p for name, p in self.named_parameters() if name.startswith("head")]
        return {"backbone": list(self.stem.parameters()), "head": heads}


def random_batch(
    batch: int = 2, size: tuple[int, int] = (32, 40), num_classes: int = 5, seed: int = 0, *, labelled: bool = True
) -> Batch:
    """Noise with random labels (none ignored), depth and a second view; size is (height, width)."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, *size, generator=g)
    label = torch.randint(num_classes, (batch, *size), generator=g) if labelled else None
    depth = 1.5 + torch.rand(batch, *size, generator=g)  # inverse depth as measured: between 1 and 65536
    view = image + 0.1 * torch.randn(batch, 3, *size, generator=g)
    names = [f"image_{seed}_{k}.png" for k in range(batch)]
    return Batch(image, label, depth if labelled else None, names, [size] * batch, view)


def tiny_options(city: Path, out: Path) -> list[str]:
    """KEY=VALUE pairs for a run of two iterations on the city, below `out`."""
    return [
        f"DATA_DIRECTORY_SOURCE={city / 'SYNTHIA'}",
        f"DATA_DIRECTORY_TARGET={city / 'Cityscapes'}",
        f"EXP_ROOT={out}",
        "EXP_NAME=tiny",
        "NUM_WORKERS=0",
        "GPU_ID=-1",
        "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True",
        "DATA_TRANSFORM.LOADSIZE=64",
        "DATA_TRANSFORM.CROPSIZE=64",
        "TRAIN.BATCH_SIZE_SOURCE=2",
        "TRAIN.BATCH_SIZE_TARGET=2",
        f"TRAIN.MODEL={TINY_NETWORK}",
        "TRAIN.MAX_ITERS=2",
        "TEST.INPUT_SIZE_TARGET=[128, 64]",
    ]


def same(a, b) -> bool:
    """Equality to the last bit, through dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def untrained_snapshot(folder: Path, city: Path, *options: str) -> Path:
    """A network that was never trained, as a run writes it; its head is made large enough to see several classes."""
    cfg_from_list([*tiny_options(city, folder / "runs"), *options])
    network = build_network(cfg, "")
    with torch.no_grad():
        for parameter in (p for module in network.head_modules() for p in module.parameters() if p.ndim == 4):
            parameter.mul_(20)
    path = save_snapshot(folder, network, 7, plain_cfg(cfg))
    reset()
    return path


def trainer_without_values(method: str, monkeypatch) -> Trainer:
    """Of a tiny network on the device "meta", with all terms that `method` can have, in the forms that a GPU takes."""
    meta = torch.device("meta")
    monkeypatch.setattr(form, "STATIC_DEVICES", ("cuda", "meta"))
    monkeypatch.setattr(cycle_association, "DENSE_ELEMENTS", 0)  # as maps larger than these are compared
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # which does not know the device
    monkeypatch.setattr(adversarial, "FCDiscriminator", partial(FCDiscriminator, ndf=4))
    terms = ["TRAIN.MULTI_LEVEL=True", "USE_DEPTH=True", "CONTRASTIVE_LEARNING=True", "TRAIN.LAMBDA_LOVASZ=0.5"]
    cfg_from_list(["NUM_CLASSES=7", f"TRAIN.DA_METHOD={method}", *terms])
    network = TinyNetwork(7, aux=True, depth=True).to(meta)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return Trainer(network, build_objective(cfg, meta), optimizer, max_iterations=5)
