"""Measure networks, and choose among them without labels.

predictor.py       class probabilities of a network or an ensemble, with flips, scales and windows
windows.py         large images in overlapping windows
metrics.py         IoU and accuracy from a confusion matrix
evaluator.py       a network over a test split: one confusion matrix and what follows from it
tester.py          what testing a run does: snapshots, ensembles, the report
reports.py         such reports, read back
criteria.py        what tells good networks from bad ones without a target label
criterion_names.py their names and meanings
cycle_closure.py   one more of these: how many cycles close
selection.py       snapshots ranked by these
"""
