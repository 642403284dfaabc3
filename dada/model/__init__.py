"""Segmentation networks, the discriminator, and their weights."""

from dada.model.batch_norm import BN_POLICIES, DomainBatchNorm2d, convert_domain_batch_norm, select_domain
from dada.model.deeplabv2 import DeepLabV2, undilated_resnet18
from dada.model.discriminator import FCDiscriminator
from dada.model.outputs import Outputs
from dada.model.registry import MODELS, build_model
from dada.model.segmentation_model import SegmentationModel, check_parameter_groups
from dada.model.weights import LoadReport, load_weights

__all__ = [
    "BN_POLICIES",
    "MODELS",
    "DeepLabV2",
    "DomainBatchNorm2d",
    "FCDiscriminator",
    "LoadReport",
    "Outputs",
    "SegmentationModel",
    "build_model",
    "check_parameter_groups",
    "convert_domain_batch_norm",
    "load_weights",
    "select_domain",
    "undilated_resnet18",
]
