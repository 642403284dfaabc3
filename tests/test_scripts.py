"""The scripts as a user runs them, on a small city: from any folder, with every flag, and when something is wrong.

Starting Python and torch takes seconds: what needs no process of its own runs in this one.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_options

from dada.commands import demo as demo_module

ROOT = Path(__file__).parent.parent


def call(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("DADA_TRACEBACK", None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def tiny(city: Path, out: Path, *more: str) -> list[str]:
    return [
        "--cfg",
        "toycity.yml",
        "--set",
        *tiny_options(city, out),
        "TRAIN.RESTORE_FROM=random",
        "TRAIN.CONTRASTIVE_START=1",
        *more,
    ]


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def error_of(done: subprocess.CompletedProcess) -> str:
    """The one message of a run that failed as it should."""
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    starts = [k for k, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1 and "Traceback" not in done.stderr, done.stderr
    return "\n".join(lines[starts[0] :])


@pytest.fixture
def message_of(run_script, capfd):
    """`message_of("train.py", *arguments)`: the one message of a script that fails as it should, in this process."""

    def message(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run_script(*arguments)
        assert isinstance(ended.value.code, str)  # which Python prints, with exit code 1
        assert "Traceback" not in capfd.readouterr().err
        return ended.value.code

    return message


def test_a_run_is_trained_here_and_tested_by_a_process_from_inside_scripts(city, tmp_path, run_script, capsys):
    out = tmp_path / "runs"
    flags = ["--exp-suffix", "first", "--random-train", "--tensorboard", "--viz-every-iter", "2"]
    run_script("train.py", *tiny(city, out), *flags)
    folder = out / "snapshots" / "tiny_first"
    assert capsys.readouterr().out.strip().splitlines()[-2] == f"snapshots: {folder}"
    assert files_below(folder) == ["checkpoint_2.pth", "model_2.pth", "train_cfg.yml"]
    resolved = yaml.safe_load((folder / "train_cfg.yml").read_text())
    assert resolved["TRAIN"]["RANDOM_SEED"] != 1234 and resolved["TRAIN"]["TENSORBOARD_VIZRATE"] == 2
    logs = files_below(out / "logs" / "tensorboard" / "tiny_first")
    assert len(logs) == 1 and logs[0].startswith("events.out.tfevents")

    done = call("test.py", *tiny(city, out), "--exp-suffix", "first", cwd=ROOT / "scripts")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "test_model_2.json").read_text())
    printed = next(line for line in done.stdout.splitlines() if line.startswith("mIoU 16"))
    assert printed.split()[-1] == f"{report['mIoU']['16']:.1f}"
    *_, written, following = done.stdout.strip().splitlines()
    assert written == f"written: {folder / 'test_model_2.json'}"
    assert following == f"next: python report.py {folder}"


def test_train_runs_from_inside_scripts_and_a_run_without_snapshot_cannot_be_tested(
    city, tmp_path, monkeypatch, run_script, message_of
):
    out = tmp_path / "runs"
    monkeypatch.chdir(ROOT / "scripts")
    run_script("train.py", *tiny(city, out, "TRAIN.MAX_ITERS=1", "CONTRASTIVE_LEARNING=False"))
    names = ("checkpoint_1.pth", "model_1.pth", "train_cfg.yml")
    assert files_below(out) == [f"snapshots/tiny/{name}" for name in names]

    text = message_of("test.py", *tiny(city, out), "--exp-suffix", "other")
    assert "no snapshot model_<iteration>.pth in" in text and "tiny_other" in text


def test_a_missing_folder_and_a_misspelt_key_are_each_one_message(city, tmp_path, message_of):
    out = tmp_path / "runs"
    missing = f"DATA_DIRECTORY_SOURCE={tmp_path / 'nowhere'}"
    text = message_of("train.py", *tiny(city, out, missing), "--tensorboard")
    assert f"Set DATA_DIRECTORY_SOURCE to the folder that holds RGB/; it is now '{tmp_path / 'nowhere'}'" in text

    text = error_of(call("train.py", *tiny(city, out, "TRAIN.LAMDA_SEG_MAIN=1", "NUM_CLASSES=16.5"), cwd=ROOT / "scripts"))
    assert text.splitlines() == [
        "error: --set: TRAIN.LAMDA_SEG_MAIN is not an option; the nearest is TRAIN.LAMBDA_SEG_MAIN",
        "--set: NUM_CLASSES: expected int, got float 16.5",
    ]
    assert not out.exists()


def test_a_truncated_image_met_by_a_loader_process_is_one_message(city, tmp_path, message_of):
    broken = tmp_path / "city"
    for path in (p for p in city.rglob("*.png") if "val" not in p.parts):
        copy = broken / path.relative_to(city)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        copy.write_bytes(content[: len(content) // 2] if copy.parent.name == "RGB" else content)
    text = message_of("train.py", *tiny(broken, tmp_path / "runs", "NUM_WORKERS=1"))
    assert text.startswith(f"error: cannot read {broken / 'SYNTHIA/RGB'}/") and "cut short or damaged" in text
    assert not (tmp_path / "runs").exists()


def test_the_check_of_the_data_says_by_its_exit_code_whether_training_would_work(city, tmp_path, run_script, capfd):
    run_script("check_data.py", *tiny(city, tmp_path), "--workers", "1", "--json", tmp_path / "found.json")
    printed = capfd.readouterr().out
    assert "training would work; testing would work" in printed
    assert shlex.split(printed.splitlines()[-1])[1:] == ["python", str(ROOT / "scripts/train.py"), *tiny(city, tmp_path)]
    assert json.loads((tmp_path / "found.json").read_text())["training_would_work"] is True

    missing = f"DATA_DIRECTORY_TARGET={tmp_path / 'nowhere'}"
    with pytest.raises(SystemExit) as ended:
        run_script("check_data.py", *tiny(city, tmp_path, missing), "--limit", "1", "--workers", "0")
    printed, errors = capfd.readouterr()
    assert ended.value.code == 1 and "Traceback" not in errors
    assert "error    target: dataset cannot be opened: Cityscapes images for split 'train' not found" in printed
    assert printed.strip().endswith("training would fail; testing would fail")


def test_the_demo_compares_both_networks_over_all_seeds(tmp_path, monkeypatch, capsys):
    write_city = demo_module.write_city
    city = {"source": 2, "target": 4, "val": 2, "size": (128, 64), "seed": 0}
    monkeypatch.setattr(demo_module, "write_city", lambda out, workers, **city: write_city(out, **city))
    # Jobs in processes of their own are those of test_bench.py.
    monkeypatch.setattr(demo_module, "run_all", lambda jobs, work: [work(job) for job in jobs])
    demo = tmp_path / "demo"
    options = [o for o in tiny_options(demo / "city", demo) if not o.startswith("EXP_NAME")]
    demo_module.demo(demo, [1, 2], [*options, "TRAIN.MAX_ITERS=1", "TRAIN.RESTORE_FROM=random"], city)
    results = json.loads((demo / "results.json").read_text())
    assert [(r["method"], r["seed"]) for r in results["runs"]] == [
        ("source-only", 1),
        ("source-only", 2),
        ("adapted", 1),
        ("adapted", 2),
    ]
    table = (demo / "table.txt").read_text()
    assert table.splitlines()[0].split() == ["IoU", "(%)", "source-only", "adapted"]
    assert "standard deviation over 2 seeds" in table and "gain by seed: 1: " in table
    assert table.strip() in capsys.readouterr().out
    assert (demo / "figure.png").stat().st_size > 10_000
    adapted = yaml.safe_load((demo / "snapshots/adapted_seed2/train_cfg.yml").read_text())
    assert adapted["CONTRASTIVE_LEARNING"] is True and adapted["TRAIN"]["RANDOM_SEED"] == 2


def test_the_demo_script_parses_its_flags():
    done = call("scripts/demo.py", "--help")
    assert done.returncode == 0 and "--seeds" in done.stdout and "--out" in done.stdout
