"""Measure networks, and choose among them without labels; `evaluator.py` beside this package predicts and counts.

    metrics.py     IoU and accuracy from a confusion matrix
    windows.py     large images in overlapping windows
    tester.py      what scripts/test.py does: snapshots, ensembles, the report
    reports.py     such reports, read back
    criteria.py    what tells good networks from bad ones without a target label
    selection.py   snapshots ranked by these, for scripts/select.py
"""
