"""Average networks of one kind: all of them, those that do no harm, or each group of layers by itself.

If networks come from the same start, or from one another, their weights can be averaged instead of their predictions (Izmailov
et al., UAI 2018, arXiv:1803.05407; Wortsman et al., ICML 2022, arXiv:2203.05482). A score says how good a state is; higher is
better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from dada.model.weight_files import State

Score = Callable[[State], float]
COUNTER = "num_batches_tracked"

# What is chosen together, in the names of our ResNets and of timm's families.
_STAGE = re.compile(r"^.*?\b(?:layer\d|blocks[._]\d+|(?:stages|layers)[._]\d+)(?=\.)")


class Merged(NamedTuple):
    """A state, and what it is made of.

    Args:
        parts: for each part, "all layers" or a group, the indices of the networks that it is the average of.
        scores: what was tried, in that order, and its score.
    """

    state: State
    parts: dict[str, list[int]]
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
    return Merged(average(states), {"all layers": list(range(len(states)))}, [])


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
    return Merged(average([states[k] for k in chosen]), {"all layers": chosen}, scores)


def by_layers(states: Sequence[State], score: Score) -> Merged:
    """Starting from the average of all, each group takes one network's entries instead if that improves the score."""
    everyone = list(range(len(states)))
    state = average(states)
    best = score(state)
    scores, parts = [("average of all", best)], {}
    for group, names in layer_groups(state).items():
        parts[group] = everyone
        mixed = state
        for k in everyone:
            trial = {**mixed, **{name: states[k][name] for name in names}}
            found = score(trial)
            scores.append((f"{group} of {k}", found))
            if found > best:
                state, best, parts[group] = trial, found, [k]
    return Merged(state, parts, scores)


def layer_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of a state by stage of the encoder, or by module outside it: "layer3", "encoder.blocks.4", "decoder"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stage = _STAGE.match(name)
        start = ".".join(name.split(".")[: 2 if name.startswith("encoder.") else 1])
        groups.setdefault(stage[0] if stage else start, []).append(name)
    return groups
