"""Source-only against adapted on the embedded city, over one seed or several."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dada.commands.jobs import Job, run_all, train_unless_finished
from dada.commands.visualize import panels
from dada.dataset.toycity import write_city
from dada.evaluation.evaluator import Evaluation, table, to_json
from dada.evaluation.tester import evaluate_run, protocol
from dada.figures.style import save_figure
from dada.files import write_whole
from dada.runs import find_snapshots, run_of, versions
from dada.segmenter import Segmenter

CITY = {"source": 300, "target": 240, "val": 80, "size": (512, 256), "seed": 0}
QUICK_CITY = {"source": 80, "target": 60, "val": 16, "size": (256, 128), "seed": 0}
QUICK = (
    "NUM_WORKERS=0",
    "DATA_TRANSFORM.LOADSIZE=128",
    "DATA_TRANSFORM.CROPSIZE=128",
    "TRAIN.LEARNING_RATE=1e-3",
    "TRAIN.WARMUP_ITERS=5",
    "TRAIN.MAX_ITERS=130",
    "TRAIN.SAVE_PRED_EVERY=130",
    "TRAIN.CONTRASTIVE_START=60",
    "TEST.INPUT_SIZE_TARGET=[256,128]",
)
METHODS = {"source-only": False, "adapted": True}  # the value of CONTRASTIVE_LEARNING
PICTURES = 4


def demo(out: Path, seeds: Sequence[int], overrides: Sequence[str] = (), city: Mapping[str, Any] = CITY) -> None:
    """Write the `city` to `out`/city, train and test both networks for every seed, write table and figure to `out`.

    What an earlier call wrote with the same settings is used again: the city, and finished runs.
    """
    write_city(out / "city", **city, workers=2)
    results = _train_and_test(out, seeds, overrides)
    text = table({name: evaluations[0] for name, evaluations in results.items()})
    summary = _summary(results, seeds)
    print(f"\nHeld-out target images, seed {seeds[0]}, last snapshot\n{text}\n\n{summary}")
    write_whole(out / "table.txt", f"{text}\n\n{summary}\n".encode())
    runs = [
        {"method": name, "seed": seed, **evaluation.as_dict()}
        for name, evaluations in results.items()
        for seed, evaluation in zip(seeds, evaluations)
    ]
    measured = protocol(_job(out, "adapted", seeds[0], overrides).cfg())
    about = {"city": dict(city), "protocol": measured, "versions": versions()}
    write_whole(out / "results.json", to_json({**about, "runs": runs}))
    _draw(out / "figure.png", out, seeds[0], overrides)
    print(f"written: {out / 'table.txt'}, {out / 'results.json'}, {out / 'figure.png'}")


def _train_and_test(out: Path, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, list[Evaluation]]:
    """Evaluations by method, one for each seed."""
    names = list(itertools.product(seeds, METHODS))
    evaluations = run_all([_job(out, name, seed, overrides) for seed, name in names], _evaluate_job)
    return {method: [e for (_, name), e in zip(names, evaluations) if name == method] for method in METHODS}


def _evaluate_job(job: Job) -> Evaluation:
    cfg = job.cfg()
    return list(evaluate_run(cfg, train_unless_finished(cfg, tensorboard=True)).values())[-1]


def _job(out: Path, name: str, seed: int, overrides: Sequence[str]) -> Job:
    return Job(
        "toycity.yml",
        (
            f"DATA_DIRECTORY_SOURCE={out / 'city' / 'SYNTHIA'}",
            f"DATA_DIRECTORY_TARGET={out / 'city' / 'Cityscapes'}",
            f"EXP_ROOT={out}",
            f"EXP_NAME={name}_seed{seed}",
            f"CONTRASTIVE_LEARNING={METHODS[name]}",
            f"TRAIN.RANDOM_SEED={seed}",
            *overrides,
        ),
    )


def _summary(results: dict[str, list[Evaluation]], seeds: Sequence[int]) -> str:
    lines = []
    for name, evaluations in results.items():
        mious = 100 * np.array([e.miou for e in evaluations])
        spread = f" +- {mious.std(ddof=1):.1f} (standard deviation over {len(seeds)} seeds)" if len(seeds) > 1 else ""
        covered = {e.headline(1).partition(" over ")[2] for e in evaluations} - {""}
        over = f", over {' or '.join(sorted(covered))}" if covered else ""
        lines.append(f"{name}: mIoU {mious.mean():.1f}{spread}{over}")
    source_only, adapted = ([e.miou for e in evaluations] for evaluations in results.values())
    gains = 100 * (np.array(adapted) - np.array(source_only))
    lines.append("gain by seed: " + ", ".join(f"{seed}: {gain:+.1f}" for seed, gain in zip(seeds, gains)))
    return "\n".join(lines)


def _draw(path: Path, out: Path, seed: int, overrides: Sequence[str]) -> None:
    """Evenly spaced test images, not chosen ones: image, label, source-only, adapted."""
    runs = [run_of(_job(out, name, seed, overrides).cfg()) for name in METHODS]
    snapshots = [find_snapshots(run.snapshots)[-1] for run in runs]
    read = partial(Segmenter.from_checkpoint, options=overrides)
    figure = panels(snapshots, read, names=list(METHODS), images=PICTURES, errors=False)
    save_figure(figure, path)
