"""The pictures that steps and loaders read: a toy city, as large as Cityscapes' crops need."""

from __future__ import annotations

from dada.dataset.toycity import write_city
from gpu_check.check import Check


def run(check: Check) -> None:
    pictures, size = (4, (128, 64)) if check.small else (24, (1460, 730))
    write_city(check.city, source=pictures, target=pictures, val=2, size=size, seed=1)
