"""Figures of what networks see, predict and score, for paper, screen and TensorBoard.

    style.py          sizes, fonts, colours, hatches and line styles; PNG and PDF
    panels.py         images, labels, predictions, errors
    cycle_arrows.py   cycle associations as arrows, and as maps of a class
    embedding.py      features of both domains along their principal components
    scores.py         confusion matrix, IoU of every class
    web.py            pictures, files and values inside of a page
    scalars.py        what training logged for TensorBoard, read back
    curves.py         these over the iterations

`draw_*` functions take arrays and return a matplotlib Figure; they run no network and draw no global random number.
See docs/pictures.md.
"""
