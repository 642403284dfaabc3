"""Cycle association in tiles: the same numbers as the dense form, without a matrix of source x target pixels.

`dada.domain_adaptation.contrastive_learning` defines what is computed, and `cycle_association` calls this package above a small
size; `docs/association.md` derives every step. Nothing here reads a file, an option or a random number.

    pixels.py        a map as each metric compares it, and its gradient
    tiles.py         stripes of rows, maxima and softmax of a stripe
    products.py      matrix products, in the precision that torch is set to
    form.py          whether tiles are compiled, and whether the host may wait for a value
    check.py         whether the fused form gives what the tiled one gives, before "auto" takes it
    cycle_search.py  the cycle of every source pixel
    argmax_kernel.py the same as a kernel of Triton
    stripe_kernel.py softmax and gradient of a stripe of cosines, by a kernel
    few_channels.py  aggregation and loss of probabilities by kernels
    softmax_kernel.py, pull_kernel.py  these kernels: forward, and the gradient
    launch.py        how a kernel is started
    streamed_loss.py the loss and its gradient
    both_ways.py     for cosines, both directions of the cycles in one pass
    aggregation.py   spatial aggregation and its gradient
    attention.py     aggregation of probabilities on a CPU
    operators.py     these as operators of torch, so that a model around them can be compiled
    ring.py          the loss of images whose pixels lie on several ranks

Letters as in the dense form: C channels, S source and T target pixels, N and M either, R rows of a stripe;
here always one image at a time, and always channels first, as the maps lie in memory: `x_CN`.
"""

from dada.domain_adaptation.association.operators import stream_aggregation, stream_cycles, stream_loss

__all__ = ["stream_aggregation", "stream_cycles", "stream_loss"]
