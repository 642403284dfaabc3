"""ResNet trunks as semantic segmentation uses them: four stages, the last ones dilated instead of strided."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dada.model.recompute import recomputed


def conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016).

    `first_dilation` is that of the convolution which carries, or would carry, the stride: see ResNet.
    """

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, first_dilation: int, dilation: int, strided_conv: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (He et al., CVPR 2016); the 3x3 one is dilated.

    Caffe's ResNets, which DeepLab starts from, put the stride on the first convolution (`strided_conv` 1), so
    that the second always sees the dilation of its own stage; torchvision's put it on the second.
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, first_dilation: int, dilation: int, strided_conv: int) -> None:
        super().__init__()
        if strided_conv == 1:
            first, second = stride, 1
        else:
            first, second, dilation = 1, stride, first_dilation
        self.conv1 = nn.Conv2d(in_channels, planes, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, second, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The layers that bring a block's input to the shape of its output; None if it already has it."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


# depth: (block, blocks per stage)
ARCHITECTURES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}

# output stride: (strides, dilations) of the four stages; 8 is DeepLab's.
STAGES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2)), 32: ((1, 2, 2, 2), (1, 1, 1, 1))}


class ResNet(nn.Module):
    """Stem and four stages, without pooling or classifier.

    The max-pool rounds up (`ceil_mode`), as DeepLab's does, so that a side of 64 pixels becomes 9 positions
    at output stride 8, not 8.

    Where a stage is dilated instead of strided, the convolution that carried the stride still reads the map
    of the stage before, so it keeps that stage's dilation, and every convolution after it takes the new one.
    The dilated map, read at every second position, is then the map of the strided network that the ImageNet
    weights were trained in. In Caffe's ResNet-101 the stride sits on a 1x1 convolution, so that every 3x3
    convolution of the stage is dilated alike, as in ADVENT, DADA and PLCA.

    Args:
        depth: 18, 34, 50 or 101.
        output_stride: 8, 16 or 32, image pixels per feature pixel.
        dilated: False sets every dilation to 1 and keeps the strides, as the fork's ResNet-18 does, which
            ignores its dilation argument.
        strided_conv: convolution of a bottleneck that carries the stride: 1 (Caffe) or 2 (torchvision).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, depth: int, *, output_stride: int = 8, dilated: bool = True, strided_conv: int = 1) -> None:
        super().__init__()
        if depth not in ARCHITECTURES:
            raise ValueError(f"ResNet depth must be one of {sorted(ARCHITECTURES)}, not {depth}")
        if output_stride not in STAGES:
            raise ValueError(f"output_stride must be one of {sorted(STAGES)}, not {output_stride}")
        block, blocks = ARCHITECTURES[depth]
        strides, dilations = STAGES[output_stride]
        if not dilated:
            dilations = (1, 1, 1, 1)

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        channels, previous = 64, 1
        for stage in range(4):
            planes, dilation = 64 * 2**stage, dilations[stage]
            layers = []
            for index in range(blocks[stage]):
                stride = strides[stage] if index == 0 else 1
                first_dilation = previous if index == 0 else dilation
                layers.append(block(channels, planes, stride, first_dilation, dilation, strided_conv))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            previous = dilation
        self.channels = (channels // 2, channels)  # of layer3 and layer4
        self.recompute_blocks: bool | None = False  # see dada.model.recompute

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the maps of layer3 and layer4."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = self._run(stage, x)
        return x, self._run(self.layer4, x)

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.recompute_blocks and torch.is_grad_enabled()):
            return stage(x)
        for block in stage:
            x = recomputed(block, x)
        return x
