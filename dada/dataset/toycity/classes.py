"""The classes of the toy city, and the number that each dataset writes for them."""

import numpy as np

# The 16 classes of the label set.
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, SKY, PERSON, RIDER, CAR, BUS, MOTORCYCLE, BICYCLE = range(
    16
)

# Drawn like the others, but outside the 16 classes: a loader must map them to its ignore label.
TERRAIN, STATIC, CLUTTER, EGO_VEHICLE, OUT_OF_ROI = range(16, 21)

# Indexed by the numbers above. SYNTHIA has no ego vehicle and no region of interest: void, 0.
SYNTHIA_IDS = np.uint8([3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11, 16, 0, 0, 0, 0])
CITYSCAPES_IDS = np.uint8([7, 8, 11, 12, 13, 17, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33, 22, 4, 0, 1, 3])
