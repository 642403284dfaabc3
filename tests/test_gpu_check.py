"""`make gpu` on a machine without a GPU: how sections are run and limited, what they note, and the tables made of it."""

import io
import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from pages import ROOT

from dada import config

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]


def run(section: str, folder: Path, **options):
    """A section in this process, at its tiniest: the rows that it noted."""
    import importlib

    from gpu_check import plan
    from gpu_check.check import Check

    module = next(s.module for s in plan.SECTIONS if s.name == section)
    check = Check(section, "cpu", True, folder, folder, **options)
    importlib.import_module(f"gpu_check.{module}").run(check)
    return results(folder)


# ---- sections


def test_the_environment_has_the_ceilings_of_the_device_and_what_decides_them(tmp_path):
    from gpu_check import tables

    rows = run("environment", tmp_path)
    assert {"torch", "python", "commit", "date", "card"} <= rows[0]["environment"].keys()
    assert all(row["value"] for row in rows[1:]) and not any("failed" in row for row in rows)
    assert "TFLOP/s" in tables.markdown(rows) and rows[0]["environment"]["torch"] in tables.markdown(rows)


def test_association_is_measured_beside_the_published_form(tmp_path):
    from gpu_check import tables

    rows = run("association", tmp_path)
    assert not any("failed" in row for row in rows)
    steps = [row for row in rows if "step" in row]
    assert len(steps) == 8 and all(row["kernels ms"] > 0 and row["tiles ms"] > 0 for row in steps)
    by_impl = {(row["metric"], row["impl"]): row for row in rows if "impl" in row}
    for metric in ("cos", "kl"):
        published, ours = by_impl[metric, "published"], by_impl[metric, "streaming"]
        assert ours["loss"] == pytest.approx(published["loss"], rel=1e-4)
        assert published["ms ratio"] == 1 and ours["ms ratio"] == pytest.approx(ours["ms"] / published["ms"])
    assert tables.association(rows).count("\n") == 4 + len(rows)


def test_other_libraries_are_measured_or_say_why_not(tmp_path):
    from gpu_check import tables

    rows = run("other libraries", tmp_path)
    assert [row["impl"] for row in rows] == ["flex", "flash-sinkhorn", "inf-cl", "keops"]
    assert all("ms" in row or row["cannot"] for row in rows)
    assert "no backward on a CPU" in tables.association(rows)


def test_evaluation_counts_the_pixels_that_the_loop_of_advent_counts(tmp_path):
    rows = run("evaluation", tmp_path)
    assert [row.get("way") for row in rows] == ["published", "ours", None]
    assert rows[2]["share of pixels counted elsewhere"] < 1e-3 and rows[0]["images/s"] > 0


def test_a_section_says_what_it_lacks(tmp_path):
    from gpu_check.check import Skip

    with pytest.raises(Skip, match="--camvid DIR"):
        run("CamVid", tmp_path)
    with pytest.raises(Skip, match="toy city"):
        run("loading", tmp_path)


def test_what_went_wrong_in_one_row_does_not_end_a_section(tmp_path):
    from gpu_check.check import Check

    check = Check("association", "cpu", True, tmp_path, tmp_path)
    with check.noting(impl="fused") as row:
        row["ms"] = 3.0
        raise RuntimeError("CUDA out of\nmemory")
    (noted,) = results(tmp_path)
    assert noted["failed"] == "RuntimeError: CUDA out of memory" and noted["ms"] == 3.0


class InThisProcess:
    """Variants without processes of their own: to import torch takes longer than these steps."""

    def __init__(self, names, arguments):
        import train_step

        self.ready, self._given = {}, {}
        for name in names:
            said, asked = io.StringIO(), io.StringIO("\n")
            argv = ["train_step.py", *arguments, "--variant", name]
            config.reset()
            with redirect_stdout(said), mock.patch("sys.stdin", asked), mock.patch("sys.argv", argv):
                train_step.main()
            self.ready[name], self._given[name] = map(json.loads, said.getvalue().splitlines())

    def rounds(self, number):
        return {name: [given] * number for name, given in self._given.items()}

    def close(self):
        pass


def test_a_whole_step_is_timed_beside_the_published_one(city, tmp_path, monkeypatch):
    import train_step
    from gpu_check import steps, tables

    def benchmark(check, name, *arguments):
        assert name == "train_step"
        rows = tmp_path / "rows.json"
        argv = ["train_step.py", "--device", "cpu", "--json", str(rows), *arguments]
        with mock.patch("sys.argv", argv):
            train_step.main()
        return json.loads(rows.read_text("utf-8"))

    monkeypatch.setattr(train_step, "Variants", InThisProcess)
    monkeypatch.setattr(steps, "benchmark", benchmark)
    (tmp_path / "city").symlink_to(city, target_is_directory=True)
    (row,) = run("ResNet-101", tmp_path)
    assert [step["variant"] for step in row["steps"]] == ["published", "plain"]
    assert all(step["images/s"] > 0 and step["peak MB"] > 0 for step in row["steps"])
    assert tables.steps([row]).count("\n") == 3


@pytest.mark.parametrize(
    "options, more",
    [
        (["TRAIN.APPLY_MULTILAYER_ASSOCIATION=False"], "loss_consistency, loss_entropy, TRAIN.COLOR_TRANSFER"),
        (["CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=MinEnt"], "loss_lovasz"),
    ],
)
def test_the_published_step_is_not_timed_beside_one_that_does_more(city, options, more):
    import train_step

    small = ["TRAIN.MODEL=timm:test_efficientnet", "TRAIN.RESTORE_FROM=random", "NUM_WORKERS=0"]
    data = [f"DATA_DIRECTORY_SOURCE={city / 'SYNTHIA'}", f"DATA_DIRECTORY_TARGET={city / 'Cityscapes'}"]
    argv = ["train_step.py", "--cfg", "toycity.yml", "--variant", "published", "--set", *small, *data, *options]
    said = io.StringIO()
    with mock.patch("sys.argv", argv), redirect_stderr(said), pytest.raises((SystemExit, ValueError)) as error:
        train_step.main()
    assert f"the published step has no {more}, so that ours would do more" in said.getvalue() + str(error.value)


# ---- how they are run


def test_the_command_runs_the_sections_that_it_is_told_and_writes_the_tables(tmp_path, capsys):
    import gpu

    assert gpu.main(["--device", "cpu", "--small", "--sections", "environment", "--out", str(tmp_path)]) == 0
    assert [row["section"] for row in results(tmp_path)][:2] == ["run", "environment"]
    assert results(tmp_path)[-1]["ended"] == "passed"
    assert "copy, read and written" in (tmp_path / "tables.md").read_text("utf-8")
    assert "passed" in capsys.readouterr().out


def programs(tmp_path, texts: dict[str, str], total: float, **fields) -> dict[str, str]:
    from gpu_check import plan, runner

    sections = [plan.Section(name, "", fields.get("seconds", 60), "", needs=fields.get("needs", ())) for name in texts]
    return runner.run_sections(sections, lambda section, _: [sys.executable, "-c", texts[section.name]], tmp_path, total)


def test_sections_pass_fail_and_are_skipped_by_what_their_process_says(tmp_path, capsys):
    texts = {
        "good": "print('fine')",
        "bad": "raise SystemExit('it was wrong')",
        "lacking": "print('no data'); raise SystemExit(64)",
    }
    assert programs(tmp_path, texts, 60) == {"good": "passed", "bad": "failed", "lacking": "skipped"}
    reasons = {row["section"]: row["reason"] for row in results(tmp_path)}
    assert reasons["good"] == "" and "it was wrong" in reasons["bad"] and reasons["lacking"] == "no data"
    assert "skipped" in capsys.readouterr().out


def test_a_section_whose_packages_are_not_installed_is_skipped(tmp_path):
    assert programs(tmp_path, {"section": "raise SystemExit(1)"}, 60, needs=("no_such_package",)) == {"section": "skipped"}
    assert "no_such_package; --wheels DIR" in results(tmp_path)[0]["reason"]


def test_a_section_that_takes_too_long_is_ended_with_what_it_started(tmp_path, monkeypatch):
    from gpu_check import runner

    monkeypatch.setattr(runner, "SHORTEST", 0)
    child = tmp_path / "child"
    start = (
        "import subprocess, time; process = subprocess.Popen(['sleep', '60']); "
        f"open({str(child)!r}, 'w').write(str(process.pid)); time.sleep(60)"
    )
    assert programs(tmp_path, {"slow": start}, 60, seconds=3) == {"slow": "out of time"}
    if child.exists():  # on a busy machine python may not have come so far
        assert ends(int(child.read_text()))


def ends(process: int, seconds: float = 30) -> bool:
    """Whether the process, which is not this one's child, is gone in that time: a signal only asks for it."""
    status = Path(f"/proc/{process}/status")
    for _ in range(int(seconds * 20)):
        try:
            if "zombie" in status.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_what_no_time_is_left_for_is_not_begun(tmp_path):
    assert programs(tmp_path, {"late": "raise SystemExit(1)"}, total=1) == {"late": "skipped"}
    assert results(tmp_path)[0]["reason"] == "no time left"


def test_limits_leave_room_for_the_timed_sections_under_nine_minutes():
    from gpu_check import plan

    assert plan.TOTAL < 540
    assert all(section.seconds < plan.TOTAL / 2 for section in plan.SECTIONS)
    assert len({section.name for section in plan.SECTIONS}) == len(plan.SECTIONS)


# ---- the tables


def test_tables_have_a_row_for_each_result_and_show_what_failed(tmp_path, capsys):
    import gpu

    step = {"variant": "plain", "images/s": 20.25, "waiting": 0.01, "peak MB": 33000.0, "time ratio": 0.5, "memory ratio": 0.25}
    rows = [
        {"section": "run", "small": True},
        {"section": "ResNet-101", "precision": "highest", "steps": [step]},
        {
            "section": "association",
            "metric": "cos",
            "channels": 512,
            "batch": 4,
            "impl": "fused",
            "failed": "OutOfMemoryError: a | b",
        },
        {"section": "tests", "test": "test_a.py::test_x[cos-1]", "outcome": "passed", "error of the loss": 1e-6},
        {"section": "tests", "test": "test_a.py::test_x[kl-1]", "outcome": "passed", "error of the loss": 2e-6},
        {"section": "CamVid", "from": "ImageNet", "iterations": 900, "training s": 80.0, "test s": 9.0, "mIoU": {"11": 51.26}},
        {"section": "CamVid", "ended": "passed", "seconds": 90.0, "reason": ""},
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert gpu.main(["--tables", str(path)]) == 0
    text = capsys.readouterr().out
    assert "| ResNet-101 | highest | plain | 20.2 | 0.01 | 33000 | 0.5 | 0.25 |" in text
    assert "OutOfMemoryError: a \\| b" in text and "Tiny sizes" in text
    assert "| test_x | error of the loss | 2e-06 |" in text
    assert "| ImageNet | 900 | 80 | 9 | 51.3 |" in text


# ---- tests on the device


def test_functions_of_losses_take_their_tensors_to_the_device_and_bring_results_back():
    import torch
    from on_device import on_device

    seen = []

    def loss(x, *, weight):
        seen.append((x.device.type, weight.device.type))
        return x, (x.shape, 3)

    x, weight = torch.zeros(2), torch.ones(2)
    meta = torch.device("meta")
    assert on_device(lambda x: 1, meta)(x) == 1
    with pytest.raises(NotImplementedError):  # a tensor on meta has no values to bring back
        on_device(loss, meta)(x, weight=weight)
    on_device(loss, meta)(x.to(meta), weight=weight)  # what is there already is not moved, and a mixture is not mended
    assert seen == [("meta", "meta"), ("meta", "cpu")]


def test_every_test_marked_gpu_is_one_that_make_gpu_runs():
    from gpu_check.tests import SUITE, gpu_files

    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in SUITE)
    assert {Path(f).name for f in gpu_files()} >= {"test_gpu_association.py", "test_gpu_training.py", "test_fused_association.py"}
    marked = {
        f.name for f in (ROOT / "tests").glob("test_*.py") if f.name != Path(__file__).name and "mark.gpu" in f.read_text("utf-8")
    }
    assert marked <= {Path(f).name for f in gpu_files()}
