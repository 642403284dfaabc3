"""The report on a machine: true, complete, and silent about everything that it was not asked for."""

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import tiny_options

from dada import __version__
from dada.commands import environment as module
from dada.commands.environment import environment, report
from dada.config import cfg, cfg_from_list

ROOT = Path(__file__).parent.parent


def test_the_script_prints_and_writes_what_it_has_found(tmp_path, monkeypatch, capsys, run_script):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    run_script("env.py", "--json", str(tmp_path / "env.json"))
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "env.json").read_text())
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    if (ROOT / ".git").exists():
        assert found["project"]["git commit"] == commit
    assert found["project"]["folder"] == str(ROOT)
    assert found["project"]["dada"] == __version__ and found["packages"]["torch"] == str(torch.__version__)
    assert found["variables"]["SLURM_JOB_ID"] == "77" and "  SLURM_JOB_ID                 77\n" in text
    assert "a-secret" not in text and "WANDB" not in text
    assert found["processors"]["cores of the machine"] == os.cpu_count()
    assert set(found) >= {"memory", "gpu", "distributed", "loader processes", "torch.compile", "disk of EXP_ROOT"}
    assert all(section in text.splitlines() for section in found)
    assert not any("images" in section for section in found)


def test_the_data_of_a_configuration_is_read_and_timed(city, tmp_path, capsys, run_script):
    run_script("env.py", "--images", "3", "--cfg", "toycity.yml", "--set", *tiny_options(city, tmp_path))
    text = capsys.readouterr().out
    _, source, target, test = (part.split("\n") for part in re.split(r"^\w+ images\n", text, flags=re.MULTILINE))
    for section, title in ((source, "SYNTHIA, 4 images"), (target, "Cityscapes, 4 images"), (test, "Cityscapes, 2 images")):
        assert section[0].split(maxsplit=1) == ["dataset", title]
        assert "MB/s" in section[2] and "from the cache" in section[2]
        assert "samples prepared" in section[3] and "NUM_WORKERS is 0" in section[3]


def test_data_in_an_archive_is_timed_and_data_that_cannot_be_read_is_a_line_of_the_report(city, tmp_path):
    with zipfile.ZipFile(tmp_path / "SYNTHIA.zip", "w") as file:
        for path in (city / "SYNTHIA").rglob("*"):
            file.write(path, path.relative_to(city))
    cfg_from_list([*tiny_options(city, tmp_path), f"DATA_DIRECTORY_SOURCE={tmp_path}/SYNTHIA.zip/SYNTHIA"])
    (tmp_path / "Cityscapes").mkdir()
    cfg_from_list([f"DATA_DIRECTORY_TARGET={tmp_path}/Cityscapes"])
    found = environment(cfg, images=2)
    assert "images/s" in found["source images"]["2 samples prepared"]
    assert list(found["target images"]) == ["cannot be read"]
    assert str(tmp_path / "Cityscapes") in report(found)


def test_limits_of_control_groups_are_those_of_the_narrowest(monkeypatch):
    content = {
        "/proc/self/cgroup": ["0::/slurm/job_7"],
        "/sys/fs/cgroup/slurm/job_7/cpu.max": ["max 100000"],
        "/sys/fs/cgroup/slurm/cpu.max": ["150000 100000"],
        "/sys/fs/cgroup/slurm/job_7/memory.max": ["8000000000"],
        "/sys/fs/cgroup/memory.max": ["16000000000"],
    }
    monkeypatch.setattr(module, "_lines", lambda path: content.get(path, []))
    found = environment(cfg)
    assert found["processors"]["limit of the container"] == "1.5 cores"
    assert found["memory"] == {"of the machine": None, "available": None, "swap": None, "limit of the container": "8.0 GB"}
    content.clear()
    found = environment(cfg)
    assert found["processors"]["limit of the container"] == found["memory"]["limit of the container"] == "none"
    assert "available                    not known" in report(found)


def test_a_disk_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refused(**_):
        raise PermissionError

    cfg_from_list([f"EXP_ROOT={tmp_path / 'a' / 'b'}"])
    assert environment(cfg)["disk of EXP_ROOT"]["can be written"] is True
    monkeypatch.setattr(module.tempfile, "TemporaryFile", refused)
    found = environment(cfg)["disk of EXP_ROOT"]
    assert found["can be written"] is False and found["folder"] == f"{tmp_path}/a/b (not there yet; {tmp_path} is)"


def test_nothing_that_is_missing_is_an_error(monkeypatch):
    def gone(*_, **__):
        raise OSError

    monkeypatch.setattr(subprocess, "run", gone)
    monkeypatch.setattr(module, "_lines", lambda path: [])
    monkeypatch.setattr(module, "_version", lambda name: None)
    text = report(environment(cfg))
    assert "none: nvidia-smi finds none" in text and "packages\n  none\n" in text


def test_a_program_that_hangs_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "TIME_LIMIT", 0.2)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nsleep 600\necho Driver Version 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert environment(cfg)["gpu"]["driver"] == "none: nvidia-smi finds none"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpus_are_listed():
    found = environment(cfg)["gpu"]
    assert found["devices"] == torch.cuda.device_count() and torch.cuda.get_device_name(0) in found["device 0"]
