"""Licences of pretrained encoder weights: permissive ones are fine, others must be accepted by name.

The code of the encoders is timm's (Apache-2.0); this is about the weights, which their publishers license separately.
"""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from typing import NamedTuple

import dada.torchvision_compat  # noqa: F401  (timm imports torchvision)

import timm  # isort: skip

log = logging.getLogger(__name__)

# They allow any use that names the licence or the authors.
PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc-by-4.0"})

# (pattern of <encoder>.<weights>, licence, where it is stated). What no pattern matches is as timm's own table says.
PUBLISHED = (
    ("*dinov3*", "dinov3-license", "https://ai.meta.com/resources/models-and-libraries/dinov3-license"),
    ("*dinov2*", "apache-2.0", "LICENSE of github.com/facebookresearch/dinov2"),
    ("convnextv2_*.fcmae*", "cc-by-nc-4.0", "README of github.com/facebookresearch/ConvNeXt-V2"),
    ("vit_*.mae", "cc-by-nc-4.0", "LICENSE of github.com/facebookresearch/mae"),
)


class Licence(NamedTuple):
    """Licence of the weights of an encoder.

    Args:
        weights: timm's name of the weights, <encoder>.<weights>.
        name: of the licence, lower case; "" if none is stated.
        source: where it is stated.
    """

    weights: str
    name: str
    source: str


def licence_of(encoder_name: str) -> Licence:
    """Licence of the weights that timm offers for an encoder, by default those of its first tag."""
    pretrained = timm.get_pretrained_cfg(encoder_name, allow_unregistered=True)
    tag = getattr(pretrained, "tag", "") or ""
    weights = f"{encoder_name.split('.')[0]}.{tag}" if tag else encoder_name
    for pattern, name, source in PUBLISHED:
        if fnmatch(weights, pattern):
            return Licence(weights, name, source)
    name = (getattr(pretrained, "license", None) or "").lower()
    return Licence(weights, "" if name in ("unknown", "other") else name, f"timm {timm.__version__}")


def check_licence(encoder_name: str, accepted: str = "") -> None:
    """Accept permissive licences; log it if another one was accepted by name, or none is known.

    A file does not say which weights it holds: they are assumed to be those that timm offers under the encoder's name.

    Args:
        accepted: TRAIN.ACCEPT_LICENCE, the name of a licence that the user has read and accepts.

    Raises:
        ValueError: the licence is not permissive, and is not the accepted one.
    """
    licence = licence_of(encoder_name)
    if not licence.name:
        log.warning("no licence is known for the weights %s: find out whether you may use them", licence.weights)
    elif licence.name not in PERMISSIVE:
        if accepted.lower() != licence.name:
            raise ValueError(
                f"the weights {licence.weights} are under {licence.name}, which is not a permissive licence ({licence.source}), "
                f"and TRAIN.ACCEPT_LICENCE is {accepted!r}. Read the licence; if your use complies with it, set "
                f"TRAIN.ACCEPT_LICENCE to {licence.name!r}. Otherwise, take an encoder whose weights are free, such as "
                "vit_small_patch14_dinov2 or convnext_tiny (both apache-2.0), or start from random weights"
            )
        log.warning(
            "the weights %s are under %s (%s): so is what is trained from them", licence.weights, licence.name, licence.source
        )
