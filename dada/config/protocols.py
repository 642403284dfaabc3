"""How published methods measure: each protocol as the values of the options that decide an mIoU.

`TEST.PROTOCOL: advent` sets all of these options at the place where it is written. What the same file, or a later
`--set`, gives for one of them stands, and the report then says "advent, except FLIP True": `describe` compares, so
nobody need remember who set what. docs/coming-from.md names the source of every value. Sizes are (width, height),
and those of Cityscapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLAIN: dict[str, Any] = {
    "ALIGN_CORNERS": True,
    "TEST.INPUT_SIZE_TARGET": (1024, 512),
    "TEST.KEEP_RATIO": False,
    "TEST.RESAMPLE": "bicubic",
    "TEST.OUTPUT_SIZE_TARGET": (),
    "TEST.UPSAMPLE_VIA_INPUT": False,
    "TEST.CLASS_RULE": "ignore",
    "TEST.WITH_AGGREGATION": False,
    "TEST.FLIP": False,
    "TEST.SCALES": (1.0,),
    "TEST.SLIDE_CROP": (),
    "TEST.SLIDE_STRIDE": (),
    "LEGACY.LOGIT_ENSEMBLE": False,
}
_DAFORMER = {
    **_PLAIN,
    "ALIGN_CORNERS": False,
    "TEST.KEEP_RATIO": True,
    "TEST.RESAMPLE": "bilinear_aliased",
    "TEST.UPSAMPLE_VIA_INPUT": True,
    "TEST.CLASS_RULE": "count",
}

PROTOCOLS: dict[str, dict[str, Any]] = {
    # ADVENT (Vu et al., CVPR 2019) and DADA (Vu et al., ICCV 2019).
    "advent": {**_PLAIN, "TEST.OUTPUT_SIZE_TARGET": (2048, 1024), "LEGACY.LOGIT_ENSEMBLE": True},
    # Pixel-Level Cycle Association (Kang et al., NeurIPS 2020).
    "plca": {
        **_PLAIN,
        "ALIGN_CORNERS": False,
        "TEST.INPUT_SIZE_TARGET": (1460, 730),
        "TEST.RESAMPLE": "bilinear",
        "TEST.WITH_AGGREGATION": True,
    },
    # DACS (Tranheden et al., WACV 2021): labels are made smaller, too.
    "dacs": {**_PLAIN, "TEST.RESAMPLE": "bilinear", "TEST.OUTPUT_SIZE_TARGET": (1024, 512), "TEST.CLASS_RULE": "count"},
    # DAFormer (Hoyer et al., CVPR 2022), on mmsegmentation: the whole image at once.
    "daformer": _DAFORMER,
    # HRDA (Hoyer et al., ECCV 2022), on mmsegmentation: windows over the image at full size.
    "hrda": {
        **_DAFORMER,
        "TEST.INPUT_SIZE_TARGET": (2048, 1024),
        "TEST.SLIDE_CROP": (1024, 1024),
        "TEST.SLIDE_STRIDE": (512, 512),
    },
}

OPTIONS_OF_A_PROTOCOL = tuple(_PLAIN)


def short(option: str) -> str:
    """`TEST.FLIP` as `FLIP`: no two options of a protocol share their last part."""
    return option.rpartition(".")[2]


def describe(name: str, settings: Mapping[str, Any]) -> str:
    """The protocol's name, with what deviates from it: "advent", "advent, except FLIP True", "custom".

    Args:
        name: TEST.PROTOCOL; "" is no preset.
        settings: value of each of OPTIONS_OF_A_PROTOCOL, by its full name.
    """
    if not name:
        return "custom"
    others = [
        f"{short(option)} {_plain(settings[option])}"
        for option, value in PROTOCOLS[name].items()
        if _plain(settings[option]) != _plain(value)
    ]
    return ", ".join([name, *(f"except {first}" for first in others[:1]), *others[1:]])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
