"""The classes of the toy city, and the number that each dataset writes for them."""

import numpy as np

from dada.label_sets import LABEL_SETS

CLASS_NAMES = LABEL_SETS[16].names
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, SKY, PERSON, RIDER, CAR, BUS, MOTORCYCLE, BICYCLE) = range(
    16
)

# Drawn like the others, but outside the 16 classes: a loader must map them to its ignore label.
TERRAIN, STATIC, CLUTTER, EGO_VEHICLE, OUT_OF_ROI = range(16, 21)
VOID = 255


def _table(ids: list[int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[: len(ids)] = ids
    table.setflags(write=False)
    return table


# Indexed by the numbers above. SYNTHIA has no ego vehicle and no region of interest: void, 0.
TRAIN_IDS = _table([*range(16), VOID, VOID, VOID, VOID, VOID])
SYNTHIA_IDS = _table([3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11, 16, 0, 0, 0, 0])
CITYSCAPES_IDS = _table([7, 8, 11, 12, 13, 17, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33, 22, 4, 0, 1, 3])
