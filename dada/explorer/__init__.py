"""One HTML page in which the cycles of a few image pairs can be looked at, with nothing but a browser.

    pairs.py        images, features, class probabilities and labels of some pairs, from the cfg and a network
    prepare.py      the exact cycles of a pair, and maps reduced to few bytes, from which similarities are drawn
    cycle_page.py   the file
    page.html, page.css, view.js    its parts

See docs/pictures.md.
"""
