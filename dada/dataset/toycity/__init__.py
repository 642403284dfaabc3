"""toycity: a seeded generator of street scenes that writes SYNTHIA and Cityscapes folders."""

from dada.dataset.toycity.classes import CLASS_NAMES
from dada.dataset.toycity.scene import draw_scene, scene
from dada.dataset.toycity.write import parse_size, write_city

__all__ = ["CLASS_NAMES", "draw_scene", "parse_size", "scene", "write_city"]
