"""Domain-adaptive semantic segmentation by pixel-level cycle association."""

__version__ = "0.1.0"
