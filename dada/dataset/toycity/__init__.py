"""toycity: a seeded generator of street scenes that writes SYNTHIA and Cityscapes folders."""

from dada.dataset.toycity.write import parse_size, write_city

__all__ = ["parse_size", "write_city"]
