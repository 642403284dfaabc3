"""A step whose loss was not finite, computed again under observation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from dada.build import on_device
from dada.domain_adaptation.step import Step
from dada.training.post_mortem import BATCHES, not_finite
from dada.training.rng import set_torch_rng_state
from dada.training.trainer import Trainer, build_trainer


class Replay(NamedTuple):
    """What was found.

    Args:
        before: values that the terms had in the run, up to the one that failed.
        now: the same, and the notes of the terms, in this computation, which goes on after the first that is not finite.
        largest: parameter with the largest absolute value before the step, and that value; the first NaN, if there is one.
        weights, inputs: names of the parameters and the tensors of the batches that were not finite to begin with.
        module: the first module whose output is not finite, and of which pass; None if all outputs are.
        gradients: parameters whose gradient is not finite.
        parameters: number of all parameters with a gradient.
    """

    before: dict[str, float]
    now: dict[str, float]
    largest: tuple[str, float]
    weights: list[str]
    inputs: list[str]
    module: str | None
    gradients: list[str]
    parameters: int

    @property
    def reproduced(self) -> bool:
        """Whether the same terms are not finite."""
        return _strange(self.before) == _strange({name: self.now.get(name, 0.0) for name in self.before})

    @property
    def exact(self) -> bool:
        """Whether every term has the value of the run to the last bit; one NaN is like another."""
        return all(repr(value) == repr(self.now.get(name)) for name, value in self.before.items())


def replay(cfg: Any, content: Mapping[str, Any]) -> Replay:
    """Build what `cfg` describes, put the weights and batches of a post-mortem in, and go through the step once.

    Args:
        cfg: of the run, perhaps with other values to see whether they help.
        content: of `read_post_mortem`.

    Raises:
        ValueError: the weights do not fit the network of `cfg`.
    """
    with on_device(cfg) as device:
        trainer = build_trainer(cfg, device)
        networks = _networks(trainer)
        states = [content["state_dict"], *content["discriminators"]]
        if trainer.teacher is not None:  # a run without one is replayed with the student in its place
            states.insert(1, content.get("teacher", content["state_dict"]))
        for (name, network), state in zip(networks.items(), states):
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"the weights of the post-mortem do not fit the {name} of this configuration: {error}") from None
        step = trainer.step(*(None if (batch := content.get(name)) is None else batch.to(device) for name in BATCHES))
        weights = not_finite(_parameters(networks))
        sizes = {name: p.detach().abs().max().item() for name, p in _parameters(networks).items()}
        largest = max(sizes, key=lambda name: (math.isnan(sizes[name]), sizes[name]))
        set_torch_rng_state(content["rng"], device)
        with _watch(networks, step) as found:
            values, notes = trainer.backward(step, content["iter"], check=False)  # on to the gradients
    gradients = {name: p.grad for name, p in _parameters(networks).items() if p.grad is not None}
    return Replay(
        content["values"],
        {name: value.item() for name, value in {**values, **notes.scalars}.items()},
        (largest, sizes[largest]),
        weights,
        not_finite(_inputs(step)),
        found[0] if found else None,
        not_finite(gradients),
        len(gradients),
    )


def report(result: Replay) -> str:
    """As text."""
    lines = [f"{'term':<24}{'in the run':>16}{'now':>16}"]
    for name, value in result.now.items():
        before = f"{result.before[name]:.8g}" if name in result.before else "-"
        lines.append(f"{name:<24}{before:>16}{value:>16.8g}" + ("" if math.isfinite(value) else "   not finite"))
    lines += ["", f"not finite before the step: {_listed([*result.inputs, *result.weights]) or 'nothing'}"]
    lines.append(f"largest weight before the step: {result.largest[1]:.3g}, in {result.largest[0]}")
    lines.append(f"first output that is not finite: {result.module or 'none, of any module: it is in the loss itself'}")
    lines.append(
        f"gradients that are not finite: {len(result.gradients)} of {result.parameters}"
        + (f": {_listed(result.gradients)}" if result.gradients else "")
    )
    if result.reproduced:
        how = "to the last bit" if result.exact else "in other last bits: another device, version or number of threads"
        return "\n".join([*lines, "", f"the failure is reproduced, {how}"])
    return "\n".join([*lines, "", "the failure is NOT reproduced"])


def _networks(trainer: Trainer) -> dict[str, nn.Module]:
    return {
        "network": trainer.network,
        **({} if trainer.teacher is None else {"teacher": trainer.teacher.network}),
        **{f"discriminator {a.name}": a.discriminator for a in trainer.objective.adversaries},
    }


def _parameters(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{owner} {name}": p for owner, network in networks.items() for name, p in network.named_parameters()}


def _inputs(step: Step) -> dict[str, Tensor]:
    """What the network and the losses are given, by name."""
    tensors = {f"{domain} {name}": x for domain, batch in step.batches.items() for name, x in batch._asdict().items()}
    return {name: x for name, x in tensors.items() if isinstance(x, Tensor)}


@contextmanager
def _watch(networks: Mapping[str, nn.Module], step: Step) -> Iterator[list[str]]:
    """While the block runs, list the modules with outputs that are not finite, in order, parts before the whole."""
    found: list[str] = []
    images = {id(x): name for name, x in _inputs(step).items()}
    now = ["", ""]  # the network that runs, and what it looks at

    def begin(owner: str):
        def hook(module: nn.Module, inputs: tuple) -> None:
            now[:] = owner, images.get(id(inputs[0]), "")

        return hook

    def look(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            if not_finite({str(k): x for k, x in enumerate(outputs) if isinstance(x, Tensor)}):
                on = f", on {now[1]}" if now[1] else ""
                found.append(f"{now[0]} {name} ({type(module).__name__}){on}".replace("  ", " "))

        return hook

    handles = []
    for owner, network in networks.items():
        handles.append(network.register_forward_pre_hook(begin(owner)))
        handles += [module.register_forward_hook(look(name)) for name, module in network.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _strange(values: Mapping[str, float]) -> set[str]:
    return {name for name, value in values.items() if not math.isfinite(value)}


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" … and {len(names) - most} more" if len(names) > most else "")
