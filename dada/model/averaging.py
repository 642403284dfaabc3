"""Average networks of one kind: all of them, or those that do no harm.

If networks come from the same start, or from one another, their weights can be averaged instead of their predictions (Izmailov
et al., UAI 2018, arXiv:1803.05407; Wortsman et al., ICML 2022, arXiv:2203.05482). A score says how good a state is; higher is
better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dada.model.weight_files import State

Score = Callable[[State], float]
COUNTER = "num_batches_tracked"


class Merged(NamedTuple):
    """A state, and what it is made of.

    Args:
        members: the indices of the networks that it is the average of.
        scores: what was tried, in that order, and its score.
    """

    state: State
    members: list[int]
    scores: list[tuple[str, float]]


def average(states: Sequence[State]) -> State:
    """The mean of each entry, computed in float64, in the type of the first state; of batch norm's counters, the largest.

    Raises:
        ValueError: the states differ in names or shapes, an entry is not finite, or whole numbers differ.
    """
    first = states[0]
    for state in states[1:]:
        if state.keys() != first.keys():
            raise ValueError(f"their entries differ, first in {sorted(state.keys() ^ first.keys())[0]}")
    found = {}
    for name, value in first.items():
        entries = [state[name] for state in states]
        if any(entry.shape != value.shape for entry in entries):
            raise ValueError(f"the shapes of {name} differ: {', '.join(str(tuple(entry.shape)) for entry in entries)}")
        if value.is_floating_point():
            if not all(entry.isfinite().all() for entry in entries):
                raise ValueError(f"{name} holds numbers that are not finite")
            found[name] = torch.stack([entry.double() for entry in entries]).mean(0).to(value.dtype)
        elif name.endswith(COUNTER):
            found[name] = torch.stack(entries).amax(0)
        elif all(torch.equal(entry, value) for entry in entries):
            found[name] = value
        else:
            raise ValueError(f"{name} holds whole numbers, which differ and have no mean")
    return found


def uniform(states: Sequence[State]) -> Merged:
    """The average of all."""
    return Merged(average(states), list(range(len(states))), [])


def greedy(states: Sequence[State], score: Score) -> Merged:
    """Starting from the best state, add each next one to the average unless the score gets worse: "greedy soup"."""
    alone = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda k: -alone[k])  # of equals, the one named first
    scores = [(f"{k}", alone[k]) for k in range(len(states))]
    chosen, best = [order[0]], alone[order[0]]
    for k in order[1:]:
        trial = score(average([states[i] for i in (*chosen, k)]))
        scores.append((" + ".join(map(str, (*chosen, k))), trial))
        if trial >= best:
            chosen, best = [*chosen, k], trial
    return Merged(average([states[k] for k in chosen]), chosen, scores)
