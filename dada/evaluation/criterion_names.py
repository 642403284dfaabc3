"""Names of the criteria that rank networks without target labels. Imports nothing, because flags are made from it."""

CLOSURE = "cycle closure"
MEANINGS = {
    "information": "how much a prediction tells: certain for each pixel, but of many classes over all pixels; fooled by classes "
    "that really are rare",
    "certainty": "1 - normalised entropy of the predictions; fooled by networks that are sure of one class",
    "agreement": "share of the pixels predicted alike on the mirrored image; fooled by one class everywhere",
    CLOSURE: "mean over the source's classes of the share of their pixels whose cycle through the target returns to the class",
}
