"""What a training step and a comparison of networks make of cycles; see docs/methods.md.

    term.py      cycle association as a term of a step
    rates.py     how often cycles close, and how surely, for each class
    closure.py   cycle closure of a network, a criterion without target labels
"""
