"""ResNets of fewer weights, for tests in which nothing depends on their number."""

import pytest
from torch import nn

from dada.model import resnet

WHOLE = dict(resnet.ARCHITECTURES)


class Slim(resnet.BasicBlock):
    """With few channels in the middle, which makes files of weights small: the names are the same."""

    def __init__(self, in_channels: int, planes: int, stride: int, first_dilation: int, dilation: int, strided_conv: int) -> None:
        super().__init__(in_channels, planes, stride, first_dilation, dilation, strided_conv)
        self.conv1 = resnet.conv3x3(in_channels, 8, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = resnet.conv3x3(8, planes, 1, dilation)


@pytest.fixture(scope="module", autouse=True)
def slim():
    """Networks of fewer weights, where nothing depends on their number: whole ones are in test_models_golden.py."""
    with pytest.MonkeyPatch.context() as patch:
        for depth, block, count in ((18, Slim, 2), (34, Slim, 2), (50, resnet.Bottleneck, 2), (101, resnet.Bottleneck, 1)):
            patch.setitem(resnet.ARCHITECTURES, depth, (block, (count,) * 4))
        yield


@pytest.fixture
def whole_resnet(monkeypatch):
    """ResNets as torchvision has them."""
    monkeypatch.setattr(resnet, "ARCHITECTURES", WHOLE)
