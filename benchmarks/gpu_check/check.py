"""What a section gets, and where its rows go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = "results.jsonl"


class Skip(Exception):
    """Raised by a section that cannot run here; says what is missing."""


@dataclass(frozen=True)
class Check:
    """One section of a run.

    Args:
        section: its name.
        device: "cuda" or "cpu".
        small: sizes at which a CPU is done in seconds; such figures say nothing about speed.
        out: folder of results.jsonl, and of what programs wrote.
        work: folder for what a run needs and nobody keeps.
        seconds: what the section may take.
        camvid: folder of CamVid, if there is one.
    """

    section: str
    device: str
    small: bool
    out: Path
    work: Path
    seconds: float = 60.0
    camvid: Path | None = None

    def note(self, **row: Any) -> None:
        """Append a row to the results at once, so that a section that runs out of time has said what it knows."""
        append(self.out, {"section": self.section} | row)

    @contextmanager
    def noting(self, **row: Any) -> Iterator[dict[str, Any]]:
        """A row to be filled in the block and noted after it, with what went wrong, which does not end the section."""
        try:
            yield row
        except Skip:
            raise
        except Exception as error:
            row |= {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        self.note(**row)

    @property
    def city(self) -> Path:
        """Folder of the toy city that the section "toy city" makes."""
        folder = self.work / "city"
        if self.section != "toy city" and not (folder / "SYNTHIA").is_dir():
            raise Skip("there is no toy city: the section of that name makes it")
        return folder


def append(out: Path, row: dict[str, Any]) -> None:
    with open(out / RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row | {"at": round(time.time(), 2)}, default=str) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
