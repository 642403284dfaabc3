"""The method: what is minimised, from the list of terms down to the tiles that compute them.

    objectives.py             which terms a method adds up, and with which weights
    association_term.py, adversarial.py, self_training/    the terms that are more than a loss of one map
    step.py                   a batch of each domain with the network's outputs on it, as the terms see them; what they return
    teacher.py                a running mean of the network, for terms that learn from its predictions
    cycle_association.py      the loss, the cycles and the aggregation as they are called: chooses the form of a call
    association/              the same values and gradients as the definition in tiles, memory linear in the pixels
    contrastive_learning.py   cycle association: the plain dense form, which is the definition
    losses.py                 losses of one map each

An import goes down this list only. See docs/methods.md and docs/association.md.
"""
