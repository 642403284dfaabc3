"""Association as a term of a step, in all its forms; see docs/methods.md.

    terms.py            the terms, from a step to a loss
    cycle_weights.py    cycles weighted by class and confidence
    pixel_memory.py     pixels of earlier images
    soft_cycles.py      walks to all pixels in place of cycles
    class_contrast.py   contrast with class distributions, which needs no pairs
    target_classes.py   the classes that target images seem to hold, for pairing
    closure.py          cycle closure of a network, a criterion without target labels
"""
