"""One HTML page in which the cycles of a few image pairs can be looked at, with nothing but a browser.

    pairs.py        images, features, class probabilities and labels of some pairs, from the cfg and a network
    reduce.py       features in few bytes: principal directions, quantised where it matters most
    prepare.py      what the page gets of a pair, and how exact that is
    cycle_page.py   the file
    page.html, page.css, association.js, view.js    its parts; the page computes similarities itself

See docs/explorer.md.
"""
