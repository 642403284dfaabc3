"""Source-only against adapted on the embedded city, over one seed or several."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from dada.config import cfg, cfg_from_file, cfg_from_list, reset
from dada.dataset.toycity import write_city
from dada.domain_adaptation.build import choose_device, test_loader
from dada.domain_adaptation.evaluator import Evaluation, table, to_json
from dada.domain_adaptation.figures import predict_labels, save_panel
from dada.domain_adaptation.runs import find_snapshots, run_of, versions
from dada.domain_adaptation.tester import load_predictor, protocol, test
from dada.domain_adaptation.trainer import is_finished, train
from dada.files import write_whole

CITY = {"source": 300, "target": 240, "val": 80, "size": (512, 256), "seed": 0}
METHODS = {"source-only": False, "adapted": True}  # the value of CONTRASTIVE_LEARNING
PICTURES = 4


def demo(out: Path, seeds: Sequence[int], overrides: Sequence[str] = ()) -> None:
    """Write the city to `out`/city, train and test both networks for every seed, write table and figure to `out`.

    What a former call has written with the same settings is used again: the city, and runs that reached their end.
    """
    write_city(out / "city", **CITY, workers=2)
    results = _train_and_test(out, seeds, overrides)
    text = table({name: evaluations[0] for name, evaluations in results.items()})
    summary = _summary(results, seeds)
    print(f"\nHeld-out target images, seed {seeds[0]}, last snapshot\n{text}\n\n{summary}")
    write_whole(out / "table.txt", f"{text}\n\n{summary}\n".encode())
    write_whole(out / "results.json", to_json(_as_dict(results, seeds)))
    _draw(out / "figure.png", out, seeds[0], overrides)
    print(f"written: {out / 'table.txt'}, {out / 'results.json'}, {out / 'figure.png'}")


def _train_and_test(out: Path, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, list[Evaluation]]:
    """Evaluations by method, one for each seed.

    On a CPU every network trains in a process of its own, with one thread: two threads make a small network hardly
    faster, two processes get twice as much done, and one thread adds up in one order.
    """
    _configure(out, next(iter(METHODS)), seeds[0], overrides)
    jobs = [(out, name, seed, overrides, bar) for bar, (seed, name) in enumerate(itertools.product(seeds, METHODS))]
    if choose_device(cfg).type == "cuda":
        evaluations = [_one_run(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
            evaluations = list(pool.map(_one_run, *zip(*jobs)))
    return {name: [e for job, e in zip(jobs, evaluations) if job[1] == name] for name in METHODS}


def _one_run(out: Path, name: str, seed: int, overrides: Sequence[str], bar: int) -> Evaluation:
    """Train, unless that was done before, and test."""
    run = _configure(out, name, seed, overrides)
    if choose_device(cfg).type == "cpu":
        torch.set_num_threads(1)
    if is_finished(cfg, run):
        print(f"{run.name}: already trained with this configuration, {run.snapshots}")
    else:
        train(cfg, run, bar_position=bar)
    return list(test(cfg, run).values())[-1]


def _configure(out: Path, name: str, seed: int, overrides: Sequence[str]):
    """Fill the global cfg for one run of the demo and return the run."""
    reset()
    cfg_from_file("toycity.yml")
    cfg_from_list(
        [
            f"DATA_DIRECTORY_SOURCE={out / 'city' / 'SYNTHIA'}",
            f"DATA_DIRECTORY_TARGET={out / 'city' / 'Cityscapes'}",
            f"EXP_ROOT={out}",
            f"EXP_NAME={name}_seed{seed}",
            f"CONTRASTIVE_LEARNING={METHODS[name]}",
            f"TRAIN.RANDOM_SEED={seed}",
            *overrides,
        ]
    )
    return run_of(cfg)


def _summary(results: dict[str, list[Evaluation]], seeds: Sequence[int]) -> str:
    lines = []
    for name, evaluations in results.items():
        mious = 100 * np.array([e.miou for e in evaluations])
        spread = f" +- {mious.std(ddof=1):.1f} (standard deviation over {len(seeds)} seeds)" if len(seeds) > 1 else ""
        lines.append(f"{name}: mIoU {mious.mean():.1f}{spread}")
    source_only, adapted = ([e.miou for e in evaluations] for evaluations in results.values())
    gains = 100 * (np.array(adapted) - np.array(source_only))
    lines.append("gain by seed: " + ", ".join(f"{seed}: {gain:+.1f}" for seed, gain in zip(seeds, gains)))
    return "\n".join(lines)


def _as_dict(results: dict[str, list[Evaluation]], seeds: Sequence[int]) -> dict:
    return {
        "city": CITY,
        "protocol": protocol(cfg),
        "versions": versions(),
        "runs": [
            {"method": name, "seed": seed, **evaluation.as_dict()}
            for name, evaluations in results.items()
            for seed, evaluation in zip(seeds, evaluations)
        ],
    }


def _draw(path: Path, out: Path, seed: int, overrides: Sequence[str]) -> None:
    """Evenly spaced test images, not chosen ones: image, label, source-only, adapted."""
    predictions = {}
    for name in METHODS:
        run = _configure(out, name, seed, overrides)
        device = choose_device(cfg)
        predictor = load_predictor(cfg, [find_snapshots(run.snapshots)[-1]], device)
        normalization = predictor.networks[0].normalization
        dataset = test_loader(cfg, normalization).dataset
        count = min(PICTURES, len(dataset))
        samples = [dataset[int(k)] for k in np.linspace(0, len(dataset) - 1, count).round()]
        predictions[name] = predict_labels(predictor, samples, device)
    save_panel(path, samples, predictions, normalization, dataset.classes)
