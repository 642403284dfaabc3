"""DeepLabV2 (Chen et al., TPAMI 2018) as ADVENT, DADA and PLCA share it, with DADA's depth block as an option."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from dada.model.depth import DepthBlock
from dada.model.outputs import Outputs
from dada.model.resnet import ResNet
from dada.model.segmentation_model import SegmentationModel
from dada.normalization import CAFFE_BGR, Normalization

DILATIONS = (6, 12, 18, 24)  # suit the 92x92 maps of 730x730 images


class DeepLabHead(nn.Module):
    """Sum of dilated 3x3 convolutions, one per rate, drawn from N(0, 0.01): (B, C, h, w) -> (B, K, h, w)."""

    def __init__(self, in_channels: int, num_classes: int, *, bias: bool = True, dilations: Sequence[int] = DILATIONS) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate, bias=bias) for rate in dilations
        )
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, 0.0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2d_list[0](x)
        for conv in self.conv2d_list[1:]:
            out = out + conv(x)
        return out


class DeepLabV2(ResNet, DepthBlock, SegmentationModel):
    """ResNet with the DeepLabV2 head on layer4, and with `multi_level` a second one on layer3.

    State names are those that ADVENT and DADA publish: `layer6` is the head, `layer5` the auxiliary head.

    Args:
        num_classes: K.
        depth: 18, 34, 50 or 101.
        multi_level: add the auxiliary head on layer3.
        with_depth: add DADA's depth block on layer4; the head then reads the fused map.
        head_bias: False gives PLCA's bias-free head.
        bn_policy: see dada.model.batch_norm.BN_POLICIES.
        normalization: how the images of the intended pretrained weights were prepared.
        init: "normal" draws every convolution from N(0, 0.01), as ADVENT does before it loads ImageNet
            weights; "kaiming" starts the trunk as torchvision and PLCA do (He et al., ICCV 2015, fan out), so
            that it can also be trained from scratch. The head is drawn from N(0, 0.01) in both. The depth block
            starts "published" with "normal" and "open" with "kaiming": see DepthBlock.
        output_stride, dilated, strided_conv: see ResNet.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int = 101,
        multi_level: bool = False,
        with_depth: bool = False,
        head_bias: bool = True,
        bn_policy: str = "train",
        normalization: Normalization = CAFFE_BGR,
        init: str = "normal",
        output_stride: int = 8,
        dilated: bool = True,
        strided_conv: int = 1,
    ) -> None:
        super().__init__(depth, output_stride=output_stride, dilated=dilated, strided_conv=strided_conv)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        if init not in ("normal", "kaiming"):
            raise ValueError(f"init must be 'normal' or 'kaiming', not {init!r}")
        self.normalization = normalization
        self.depth = depth
        self.dilated = dilated
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if init == "normal":
                    nn.init.normal_(module.weight, 0.0, 0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if multi_level:
            self.layer5 = DeepLabHead(self.channels[0], num_classes, bias=head_bias)
        self.layer6 = DeepLabHead(self.channels[1], num_classes, bias=head_bias)
        self.multi_level = multi_level
        if with_depth:
            self.add_depth_block(self.channels[1], init="published" if init == "normal" else "open")
        self.set_bn_policy(bn_policy)

    def forward(self, image: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs; `features` is the layer4 map, fused with depth where that is predicted."""
        self.check_image(image)
        layer3, layer4 = self.encode(image)
        aux = self.layer5(layer3) if self.multi_level else None
        features, depth = self.fuse(layer4)
        return Outputs(self.classify(features), features, aux, depth)

    def classify(self, features: Tensor, skip: Tensor | None = None) -> Tensor:
        return self.layer6(features)

    def backbone_modules(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4]

    def head_modules(self) -> list[nn.Module]:
        heads = [self.layer5, self.layer6] if self.multi_level else [self.layer6]
        return [*heads, *self.depth_modules()]


# The fork's ResNet-18: stride 1 in layer3 and layer4 but no dilation, on BGR images.
undilated_resnet18 = partial(DeepLabV2, depth=18, dilated=False, init="kaiming", normalization=CAFFE_BGR)
