"""Which sections there are, in which order, and for how long."""

from __future__ import annotations

from typing import NamedTuple

TOTAL = 530  # seconds: with the start of the last process under nine minutes
PACKAGES = ("easydict", "timm", "cv2", "yaml")
TESTS = (*PACKAGES, "pytest", "hypothesis")


class Section(NamedTuple):
    """One section.

    Args:
        name: of the section, and of its rows.
        module: of this package.
        seconds: that it may take at most.
        about: one line for --help and for the log.
        together: runs beside the sections around it that do, since it times nothing.
        needs: modules without which it is skipped.
    """

    name: str
    module: str
    seconds: int
    about: str
    together: bool = False
    needs: tuple[str, ...] = PACKAGES


SECTIONS = (
    Section("environment", "environment", 60, "versions, and what the device can do at most", needs=()),
    Section("toy city", "toy_city", 60, "pictures for the steps and the loaders", True),
    Section("association tests", "tests", 150, "the tests marked gpu of association", True, TESTS),
    Section("resume tests", "tests", 150, "the tests marked gpu that end runs and go on", True, TESTS),
    Section("other tests", "tests", 150, "all other tests marked gpu", True, TESTS),
    Section("suite", "tests", 120, "losses and association of the suite, on the device", True, TESTS),
    Section("association", "association_speed", 80, "beside the published form: time, memory", needs=("easydict",)),
    Section("ResNet-101", "steps", 110, "whole steps at 730x730, four images of each domain"),
    Section("evaluation", "evaluation", 40, "images a second beside ADVENT's loop"),
    Section("loading", "loading", 45, "with as many processes as there are cores"),
    Section("EfficientNet-Lite0", "steps", 45, "whole steps at 512x512"),
    Section("DINOv2-S", "steps", 45, "whole steps at 512x512"),
    Section("CamVid", "camvid", 180, "a training from day to dusk, and its mIoU"),
    Section("other libraries", "association_speed", 90, "their association, where they are installed", needs=("easydict",)),
)


def chosen(names: list[str]) -> list[Section]:
    """The sections of these names, in the order of the plan; all of them if none is named."""
    return [section for section in SECTIONS if not names or section.name in names]
