"""Each protocol against the published evaluation written out: Pillow or OpenCV, one image, one network, one count."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import TINY_NETWORK

from dada.config import cfg, cfg_from_list, plain_cfg
from dada.evaluation.tester import evaluate_run as run_test
from dada.label_sets import cityscapes_id_map
from dada.model import build_model
from dada.runs import run_of, save_snapshot


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    network = build_model(TINY_NETWORK, 19).train()
    with torch.no_grad():  # batch norm gets statistics, and no class is ahead of the others on average
        for _ in range(20):
            network(torch.randn(4, 3, 64, 96))
        network.eval()
        ahead = network(torch.randn(8, 3, 64, 96)).logits.mean(dim=(0, 2, 3))
        biases = [p for name, p in network.named_parameters() if name.endswith("bias") and p.shape == (19,)]
        biases[-1] -= ahead
    return network


def resized(image, size, how):
    """RGB array -> (1, 3, h, w) as the network wants it."""
    if how == "opencv":
        pixels = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR)
    else:
        pixels = np.asarray(image.resize(size, {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[how]))
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]


def up(x, size, align_corners):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def mixed(x, similarity):
    """Half of each pixel's vector, half the mean over all pixels that its row of similarities weighs."""
    flat = x.flatten(2)[0].T
    return (0.5 * flat + 0.5 * (similarity(flat).softmax(dim=1) @ flat)).T.reshape(x.shape)


def cosine_normalised(flat):
    unit = F.normalize(flat, dim=1)
    similarity = unit @ unit.T
    return (similarity - similarity.mean(dim=1, keepdim=True)) / (similarity.std(dim=1, keepdim=True) + 1e-10)


def negative_kl(p):
    logs = (p + 1e-10).log()
    return p @ logs.T - (p * logs).sum(dim=1, keepdim=True)


def advent(network, image, label):
    x = network.normalization(resized(image, (64, 32), "bicubic"))
    return up(network(x).logits, (48, 96), True).argmax(1)[0], label.resize((96, 48), Image.NEAREST)


def plca(network, image, label):
    outputs = network(network.normalization(resized(image, (64, 32), "bilinear")))
    logits = network.classify(mixed(outputs.features, cosine_normalised), outputs.skip)
    probabilities = mixed(logits.softmax(1), negative_kl)
    return up(probabilities, (64, 128), False).argmax(1)[0], label


def dacs(network, image, label):
    x = network.normalization(resized(image, (64, 32), "bilinear"))
    return up(network(x).logits, (32, 64), True).argmax(1)[0], label.resize((64, 32), Image.NEAREST)


def daformer(network, image, label):
    x = network.normalization(resized(image, (64, 32), "opencv"))
    return up(up(network(x).logits, (32, 64), False), (64, 128), False).argmax(1)[0], label


def hrda(network, image, label):
    x = network.normalization(resized(image, (128, 64), "opencv"))
    total, count = torch.zeros(1, 19, 64, 128), torch.zeros(64, 128)
    for top in (0, 16, 32):
        for left in range(0, 97, 16):
            window = (..., slice(top, top + 32), slice(left, left + 32))
            total[window] += up(network(x[window]).logits, (32, 32), False)
            count[window] += 1
    return up(total / count, (64, 128), False).argmax(1)[0], label


SIZES = {
    "advent": ["TEST.INPUT_SIZE_TARGET=[64, 32]", "TEST.OUTPUT_SIZE_TARGET=[96, 48]"],
    "plca": ["TEST.INPUT_SIZE_TARGET=[64, 32]"],
    "dacs": ["TEST.INPUT_SIZE_TARGET=[64, 32]", "TEST.OUTPUT_SIZE_TARGET=[64, 32]"],
    "daformer": ["TEST.INPUT_SIZE_TARGET=[64, 32]"],
    "hrda": ["TEST.INPUT_SIZE_TARGET=[128, 64]", "TEST.SLIDE_CROP=[32, 32]", "TEST.SLIDE_STRIDE=[16, 16]"],
}


@pytest.mark.parametrize("by_hand", [advent, plca, dacs, daformer, hrda])
def test_a_protocol_counts_what_the_published_evaluation_counts(by_hand, tiny_cfg, city, network, capsys):
    name = by_hand.__name__
    cfg_from_list(["NUM_CLASSES=19", f"TEST.PROTOCOL={name}", *SIZES[name]])
    run = run_of(tiny_cfg)
    save_snapshot(run.snapshots, network, 1, plain_cfg(cfg))
    found = run_test(tiny_cfg, run)["model_1"].confusion[:19]  # under "count" a row for other classes follows, empty with all 19

    expected = np.zeros((19, 19), dtype=int)
    for path in sorted((city / "Cityscapes/leftImg8bit/val").rglob("*.png")):
        label_path = str(path).replace("leftImg8bit", "gtFine", 1).replace("_leftImg8bit", "_gtFine_labelIds")
        with torch.no_grad():
            prediction, label = by_hand(network, Image.open(path).convert("RGB"), Image.open(label_path))
        ids = cityscapes_id_map(19)[np.asarray(label)]
        np.add.at(expected, (ids[ids < 19], prediction.numpy()[ids < 19]), 1)
    assert (expected.sum(axis=0) > 0).sum() > 3  # the network predicts several classes
    assert found.sum() == expected.sum()
    differing = np.abs(found.numpy() - expected).sum() / 2
    assert differing <= 0.0005 * expected.sum()  # ties may fall either way
