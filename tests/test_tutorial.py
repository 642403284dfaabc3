"""The tutorial as a reader follows it: its file, its commands in order, its Python; small, and at full size with -m slow."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, blocks, commands, run_here
from tiny import TINY_NETWORK

PAGE = ROOT / "docs" / "tutorial.md"
ITERATIONS = 2
# What makes each command small.
SMALL = {
    "make_toycity": ["--source", "4", "--target", "4", "--val", "2", "--size", "128x64", "--workers", "1"],
    "check_data": ["--workers", "0"],
    "select": ["--images", "2", "--pairs", "1"],
}
OPTIONS = [
    f"TRAIN.MODEL={TINY_NETWORK}",
    "TRAIN.RESTORE_FROM=random",
    f"TRAIN.MAX_ITERS={ITERATIONS}",
    "TRAIN.CONTRASTIVE_START=1",
    "TRAIN.BATCH_SIZE_SOURCE=2",
    "TRAIN.BATCH_SIZE_TARGET=2",
    "DATA_TRANSFORM.LOADSIZE=64",
    "DATA_TRANSFORM.CROPSIZE=64",
    "TEST.INPUT_SIZE_TARGET=[128,64]",
    "NUM_WORKERS=0",
    "GPU_ID=-1",
]
WRITTEN = ("data/tutorial/toycity.json", "experiments/report.html", "experiments/tutorial.safetensors", "experiments/tutorial.md")


def name_of(command: str) -> str:
    return re.search(r"scripts/(\w+)\.py", command)[1]


def prepare(folder, monkeypatch) -> list[str]:
    """Save the page's file in `folder`, go there, and return the page's commands."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DADA_TRACEBACK", "1")
    (file,) = blocks(PAGE, "yaml")
    assert "Save this as `tutorial.yml`" in PAGE.read_text(encoding="utf-8")
    (folder / "tutorial.yml").write_text(file)
    found = commands(PAGE)
    assert [name_of(c) for c in found if "scripts/" in c][:3] == ["make_toycity", "check_data", "train"]
    return found


def check_watching(command: str, folder) -> None:
    """TensorBoard runs for ever: it is installed, and there is something to see where it looks."""
    program, flag, logs = shlex.split(command)
    assert (program, flag) == ("tensorboard", "--logdir") and importlib.util.find_spec("tensorboard")
    assert list((folder / logs).glob("tutorial_adapted/events.out.tfevents*"))


def check_results(folder, iterations: int) -> None:
    for run in ("adapted", "source_only"):
        runs = folder / "experiments/snapshots" / f"tutorial_{run}"
        assert (runs / f"model_{iterations}.pth").is_file() and (runs / f"test_model_{iterations}.json").is_file()
    pictures = len(list((folder / "data/tutorial/Cityscapes/leftImg8bit/val").rglob("*.png")))
    for kind in ("overlay", "palette"):
        assert len(list((folder / "experiments/predictions" / kind).rglob("*.png"))) == pictures > 0
    assert all((folder / name).is_file() for name in WRITTEN)


def run_python(text: str, capsys) -> None:
    exec(compile(text, str(PAGE), "exec"), {})
    assert "'road', 'sidewalk'" in capsys.readouterr().out


def test_every_command_works_in_order(tmp_path, monkeypatch, capsys, run_script):
    def small(text: str) -> str:
        return text.replace("model_200.pth", f"model_{ITERATIONS}.pth")

    for command in prepare(tmp_path, monkeypatch):
        if command.startswith("tensorboard "):
            check_watching(command, tmp_path)
            continue
        name = name_of(command)
        more = SMALL.get(name, [])
        if name in ("train", "test"):
            more = ["--set", *OPTIONS]
        run_here(small(command), more, run_script)
        printed = capsys.readouterr().out
        if name == "check_data":
            assert "training would work; testing would work" in printed
        if "--resume" in command:
            assert "tutorial_adapted is finished" in printed
        if name == "select":
            assert "tutorial_source_only" in printed and "best by" in printed
    (text,) = blocks(PAGE, "python")
    run_python(small(text), capsys)
    check_results(tmp_path, ITERATIONS)


@pytest.mark.slow
def test_every_command_works_as_it_stands(tmp_path, monkeypatch, capsys):
    found = prepare(tmp_path, monkeypatch)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in found:
        if command.startswith("tensorboard "):
            check_watching(command, tmp_path)
        else:
            subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True)
    (text,) = blocks(PAGE, "python")
    run_python(text, capsys)
    check_results(tmp_path, 200)
