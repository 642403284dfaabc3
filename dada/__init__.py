"""Domain-adaptive semantic segmentation by pixel-level cycle association."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Segmenter needs torch, which takes a second to import; `import dada` does not.
    if name in ("Segmenter", "Prediction"):
        from dada import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module 'dada' has no attribute {name!r}")
