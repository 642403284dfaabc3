"""The device that DADA_TEST_DEVICE names, and losses and association on it.

    DADA_TEST_DEVICE=cuda python -m pytest tests/test_losses.py tests/test_cycle_association.py
    DADA_TEST_DEVICE=cpu python -m pytest -m gpu

Tests of losses and of association make their tensors on the CPU and compare there. Where the variable is set, the functions
that they test take these tensors to the device and bring the results back, and autograd follows. What a function makes itself
is left alone, so that a tensor it makes on the wrong device still shows. Tests marked `gpu` ask for the fixture `device`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

VARIABLE = "DADA_TEST_DEVICE"
DEVICE = torch.device(os.environ.get(VARIABLE) or "cuda")


def missing() -> str:
    """Why nothing can run on the device; empty if it can."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; {VARIABLE}=cpu runs most of these tests on the CPU"
    return ""


def options(device: torch.device) -> list[str]:
    """KEY=VALUE pairs with which a run takes the device."""
    return [f"DEVICE={device}"]


def moved(value: Any, device: torch.device) -> Any:
    """`value` with its tensors on the device, through tuples and named tuples."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def on_device(function: Callable, device: torch.device) -> Callable:
    """`function`, computed on `device` where all its tensors come from the CPU."""

    @functools.wraps(function)
    def there(*args, **kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors or not all(tensor.is_cpu for tensor in tensors):
            return function(*args, **kwargs)
        result = function(*moved(args, device), **{name: moved(value, device) for name, value in kwargs.items()})
        return moved(result, torch.device("cpu"))

    return there


def move_functions(modules: list[ModuleType], device: torch.device) -> None:
    """Replace the public functions of the modules by themselves on `device`; before a test imports them."""
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                setattr(module, name, on_device(function, device))
