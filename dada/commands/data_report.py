"""What was found in the data of a run, as text and for JSON."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dada.commands.check_data import Check, Domain
from dada.commands.data_problems import BLANK, Kind, Problem
from dada.dataset.image_files import first_few
from dada.dataset.statistics import class_frequencies


def report(check: Check) -> str:
    """As text: a line for each split, one for each kind of problem with the first files, a table of classes."""
    lines = [_domain_line(domain) for domain in check.domains]
    lines += ["", *_problem_lines(check)]
    lines += ["", *_class_lines(check)] if any(d.counts is not None for d in check.domains) else []
    training, testing = ("work" if fine else "fail" for fine in (check.trainable, check.testable))
    if check.trainable and check.no_weights:
        training += f" once {check.cfg['TRAIN']['RESTORE_FROM']} is there (TRAIN.RESTORE_FROM)"
    return "\n".join([*lines, "", f"training would {training}; testing would {testing}"])


def _domain_line(domain: Domain) -> str:
    text = f"{domain.who:<7} {domain.name} {domain.split} in {domain.root}: "
    if not domain.images:
        return text + "not opened"
    sizes = [f"{w}x{h}" + (f" ({n})" if len(domain.sizes) > 1 else "") for (w, h), n in domain.sizes.most_common()]
    parts = [f"{domain.images} images of {first_few(sizes, 3) or 'unknown size'}"]
    parts.append(f"{domain.labels} labels" if domain.role != "target" else "labels are not read in training")
    parts += [f"{100 * domain.ignored:.1f} % of label pixels ignored"] if domain.pixels else []
    parts += [f"{sum(domain.turned.values())} stored turned (EXIF)"] if domain.turned else []
    parts += [f"{domain.depths} depth files"] if domain.depths else []
    parts += [f"{domain.checked} of them read"] if domain.checked < domain.images else []
    parts += [f"{domain.release.name}: {domain.release.reason}"] if domain.release and domain.release.fits else []
    return text + ", ".join(parts)


def _problem_lines(check: Check) -> list[str]:
    lines = [f"error    {problem.kind.name}: {problem.message}" for problem in check.problems]
    for domain in check.domains:
        by_kind: dict[Kind, list[Problem]] = defaultdict(list)
        for problem in domain.problems:
            by_kind[problem.kind].append(problem)
        for kind, found in by_kind.items():
            head = f"{'warning' if kind.warning else 'error':<8} {domain.who}: {kind.name}"
            if kind.of_all:
                lines.append(f"{head}: {found[0].message}")
                continue
            names = first_few([_below(p.file, domain.root) for p in found], 3)
            lines.append(f"{head}, {len(found)} file{'s' * (len(found) > 1)}: {names}")
            if kind != BLANK:
                lines.append(f"{'':<10}{found[0].message}")
    lines += [f"warning  starting weights: {check.no_weights}"] if check.no_weights else []
    return lines or ["no problem found"]


def _below(path: str, root: str) -> str:
    return os.path.relpath(path, root) if Path(path).is_relative_to(root) else path


def _class_lines(check: Check) -> list[str]:
    """Frequencies of each domain with labels, and the overlap; in percent."""
    labelled = [d for d in check.domains if d.counts is not None]
    head, units, columns = [], [], []
    for domain in labelled:
        shares = class_frequencies(domain.counts)
        head.append(f"{domain.who:>20}")
        units.append(f"{'pixels':>11}{'images':>9}")
        columns.append([f"{100 * p:>11.3f}{100 * i:>9.2f}" for p, i in zip(shares.pixels, shares.images)])
    after = []
    if (o := check.overlap) is not None:
        head.append(f"{'pairs with the class in':>37}")
        units.append(f"{'source only':>15}{'test only':>11}{'both':>11}")
        shares = zip(o.source_only, o.target_only, o.both)
        columns.append([f"{100 * s:>15.2f}{100 * t:>11.2f}{100 * b:>11.2f}" for s, t, b in shares])
        after = [
            f"Of all pairs of a source with a test image, {100 * o.any_source_only:.1f} % have a class in the source image "
            f"only, {100 * o.any_target_only:.1f} % one in the test image only.",
            "Pairs are of whole images; the test split stands for the target, whose training labels are not read.",
        ]
    names = max((d.classes for d in labelled), key=len)
    width = max(14, *(len(name) for name in names))
    lines = [f"{'in %':<{width}}" + "".join(head), f"{'':<{width}}" + "".join(units)]
    for k, name in enumerate(names):
        cells = (column[k] if k < len(column) else " " * len(column[0]) for column in columns)
        lines.append(f"{name:<{width}}" + "".join(cells))
    return lines + after


def as_dict(check: Check) -> dict[str, Any]:
    """For JSON: everything, each file with a problem by name; shares in 0..1."""
    overlap = None
    if (o := check.overlap) is not None:
        names = next(d.classes for d in check.domains if d.counts is not None)
        shares = zip(names, o.source_only.tolist(), o.target_only.tolist(), o.both.tolist())
        classes = {name: {"source_only": s, "test_only": t, "both": b} for name, s, t, b in shares}
        overlap = {"any_source_only": o.any_source_only, "any_test_only": o.any_target_only, "classes": classes}
    return {
        "training_would_work": check.trainable,
        "testing_would_work": check.testable,
        "missing_weights": check.no_weights,
        "option_problems": [_problem_dict(problem) for problem in check.problems],
        "domains": [_domain_dict(domain) for domain in check.domains],
        "overlap": overlap,
        "cfg": check.cfg,
    }


def _problem_dict(problem: Problem) -> dict[str, Any]:
    return {**asdict(problem), "kind": problem.kind.name, "error": not problem.kind.warning}


def _domain_dict(domain: Domain) -> dict[str, Any]:
    result = {key: getattr(domain, key) for key in ("role", "name", "split", "root", "images", "labels", "depths", "checked")}
    result["sizes"] = {f"{w}x{h}": count for (w, h), count in domain.sizes.most_common()}
    result["ignored"] = float(domain.ignored)
    result |= {key: {str(k): n for k, n in sorted(getattr(domain, key).items())} for key in ("ids", "turned")}
    result["release"] = None if domain.release is None else domain.release._asdict()
    result["problems"] = [_problem_dict(problem) for problem in domain.problems]
    if domain.counts is not None:
        found, pixels = class_frequencies(domain.counts), domain.counts.sum(axis=0).tolist()
        shares = zip(domain.classes, pixels, found.pixels.tolist(), found.images.tolist())
        result["classes"] = {name: {"pixels": n, "share_of_pixels": p, "share_of_images": i} for name, n, p, i in shares}
    return result
