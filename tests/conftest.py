"""Fixtures of several test files: the cfg at its defaults, and a small city on disk."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_options

from dada import config
from dada.config import cfg, cfg_from_list


@pytest.fixture(autouse=True)
def _fresh_globals():
    """The cfg and torch's generator are global: no test sees what another one left there."""
    config.reset()
    torch.manual_seed(0)
    yield
    config.reset()


@pytest.fixture(scope="session")
def city(tmp_path_factory) -> Path:
    """Toy city with 4 source, 4 target train and 2 target val images of 128x64; read it, never change it."""
    from dada.dataset.toycity import write_city

    return write_city(
        tmp_path_factory.mktemp("city") / "city", source=4, target=6, val=2, size=(128, 64), seed=1
    )


@pytest.fixture
def tiny_cfg(city, tmp_path):
    """The cfg of `tiny_options`, writing below tmp_path / "runs"."""
    cfg_from_list(tiny_options(city, tmp_path / "runs"))
    return cfg
