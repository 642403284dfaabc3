"""The batch scripts: what they do with signals and exit codes, and whole trainings under a real Slurm.

The tests with a cluster start one on this machine (slurm_cluster.py). To stop a training in mid-run at any speed of
the machine, they freeze its process, whose number is in the lock of the run, until the signal is on its way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slurm_cluster import Cluster, missing, wait_until
from tiny import same, tiny_options

from dada.training.checkpoint import read_checkpoint

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts" / "slurm").iterdir())
ITERATIONS = 30


# --- without Slurm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_batch_scripts_are_sound_shell(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture
def pretended(tmp_path):
    """`pretended(command, state)`: job.sh's `run` of a command, in a job that squeue says is in `state`.

    `pretended.tool(name, line)` puts a program before those of the system.
    """
    tools = tmp_path / "tools"
    tools.mkdir()

    def tool(name: str, line: str) -> None:
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)

    def call(command: str, state: str = "RUNNING", **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail; source scripts/slurm/job.sh; {command}; echo went on ${{flags[*]-}}"],
            cwd=ROOT,
            env={
                "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHON_ENV": sys.prefix,
                "LOCAL_DISK": str(tmp_path),
                "SLURM_JOB_ID": "7",
                "STATE": state,
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=20,
        )

    tool("squeue", "echo $STATE")
    tool("scontrol", "echo scontrol $*")
    call.tool = tool
    return call


@pytest.mark.parametrize(
    ("command", "state", "code", "requeued"),
    [
        ("run true", "RUNNING", 0, False),
        ("run sh -c 'exit 1'", "RUNNING", 1, False),
        ("run sh -c 'exit 137'", "RUNNING", 137, False),  # killed, for example for its memory
        ("run sh -c 'exit 138'", "RUNNING", 138, True),
        ("run sh -c 'exit 143'", "RUNNING", 143, True),
        ("run sh -c 'exit 143'", "COMPLETING", 143, False),  # cancelled
        # Signals reach the shell, before and while the command runs; it ends in its own time, once with success.
        ("run sh -c 'exit 75'", "RUNNING", 75, True),  # before the first iteration
        ("kill -USR1 $$; run sleep 9", "RUNNING", 75, True),
        ("run sh -c 'kill -USR1 $PPID; exec sleep 9'", "RUNNING", 138, True),
        ("run sh -c 'kill -TERM $PPID; exec sleep 9'", "RUNNING", 138, True),
        ("run sh -c 'trap \"\" USR1; kill -USR1 $PPID; sleep 0.2'", "RUNNING", 0, False),
    ],
)
def test_a_job_is_requeued_if_a_signal_stopped_it_and_nothing_else(pretended, command, state, code, requeued):
    done = pretended(command, state)
    assert done.returncode == code, done.stderr
    assert ("scontrol requeue 7" in done.stdout) == requeued
    assert ("went on" in done.stdout) == (code == 0)
    assert ("not requeued" in done.stdout) == (code in (1, 137))


@pytest.mark.parametrize("command", ["run sh -c 'exit 75'", "kill -USR1 $$; run true", "stage K logs"])
def test_a_job_whose_time_does_not_suffice_for_an_iteration_does_not_come_back_for_ever(pretended, command):
    # A copy that takes longer than the job has. Its parent is the shell of the job, which gets the signal in its midst.
    pretended.tool("cp", "kill -USR1 $PPID; exec sleep 9")
    first = pretended(command)
    assert first.returncode == 75 and "scontrol requeue 7" in first.stdout
    assert ("USR1 received" in first.stdout) == (command != "run sh -c 'exit 75'")
    again = pretended(command, SLURM_RESTART_COUNT="1")
    assert again.returncode == 1 and "scontrol requeue" not in again.stdout
    assert again.stderr.startswith("error: the warning before the time limit came before the first iteration")
    assert "a larger --time" in again.stderr
    ended = pretended(command, "COMPLETING", SLURM_RESTART_COUNT="1")  # by Slurm, which knows why
    assert ended.returncode == 75 and "Slurm is ending it" in ended.stdout


def test_a_training_that_is_told_to_stop_before_it_trains_says_so_by_its_exit_code():
    waiting = (
        "import time, dada.cli.train as command\n"
        "command.load_cfg = lambda args: (print('here', flush=True), time.sleep(60))\n"
        "command.main(None)"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 75


def test_staged_data_is_copied_for_the_time_of_the_job(pretended, tmp_path):
    root = tmp_path / "data sets" / "city"
    root.mkdir(parents=True)
    (root / "a.png").write_bytes(b"1")
    archive = root.with_suffix(".zip")
    archive.write_bytes(b"2")
    done = pretended(f"stage K1 '{root}/'; stage K2 '{archive}/inner/part'; stage K3 ''; cat $copies/K1/city/a.png")
    copies = tmp_path / "dada-7"
    assert done.stdout.strip().endswith(f"1went on --set K1={copies}/K1/city --set K2={copies}/K2/city.zip/inner/part"), (
        done.stderr
    )
    assert not copies.exists()
    # A name that leads nowhere is no reason to copy the folder above it.
    done = pretended(f"stage K1 '{root}/typo'")
    assert done.returncode == 1 and f"error: there is no '{root}/typo' to copy for K1" in done.stderr


def test_a_folder_without_python_is_named(pretended):
    done = pretended("true", PYTHON_ENV="no/such")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: PYTHON_ENV is 'no/such', but there is no no/such/bin/python"


# --- with Slurm ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # pytest's own folders have names too long for a socket
    with Cluster(folder) as cluster:
        yield cluster
    shutil.rmtree(folder)  # kept if something went wrong: the logs of the daemons are in it


class Project:
    """A clone of the project in which the jobs are submitted, with logs and experiments of its own."""

    def __init__(self, folder: Path, city: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        for name in ("dada", "scripts", "configs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "logs").mkdir()
        options = tiny_options(city, Path("experiments"))
        self.flags = ["--cfg", "toycity.yml", "--set", *options, "TRAIN.RESTORE_FROM=random", "TRAIN.CONTRASTIVE_START=1"]
        self.flags += [f"TRAIN.MAX_ITERS={ITERATIONS}", f"TRAIN.SAVE_PRED_EVERY={ITERATIONS}"]

    def run(self, *command: str) -> None:
        """A script without Slurm; its own flags come after those of all."""
        start = next(i for i, word in enumerate(command) if word.endswith(".py")) + 1
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*command[:start], *self.flags, *command[start:]]
        subprocess.run(command, cwd=self.folder, env=environment, check=True, timeout=300)

    def submit(self, script: str, *flags: str, options: tuple[str, ...] = (), **environment: str) -> str:
        """The number of the job."""
        command = ["sbatch", "--parsable", f"--chdir={self.folder}", *options, f"scripts/slurm/{script}.sbatch"]
        return self.cluster.call(*command, *self.flags, "--set", *flags, **environment)

    def snapshots(self, name: str) -> Path:
        return self.folder / "experiments" / "snapshots" / name

    def log(self, job: str) -> str:
        return "".join(p.read_text(errors="replace") for p in (self.folder / "logs").glob(f"*-{job}.out"))

    def freeze(self, job: str, name: str) -> int:
        """Stop the training of a job in mid-run; returns its process."""
        folder = self.snapshots(name)
        wait_until((folder / "train_cfg.yml").exists, 300, "the first iteration", lambda: self.log(job), every=0.01)
        process = json.loads((folder / "run.lock").read_text())["pid"]
        os.kill(process, signal.SIGSTOP)
        return process

    def wait_for_log(self, job: str, text: str, seconds: float) -> None:
        wait_until(lambda: text in self.log(job), seconds, f"{text!r} in the log", lambda: self.log(job))

    def end_of(self, job: str) -> dict[str, str]:
        """The job, after its end."""

        def ended():
            found = self.cluster.job(job)
            return found["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED") and found

        return wait_until(ended, 300, f"the end of job {job}", lambda: self.log(job))

    def result(self, name: str, iterations: int = ITERATIONS) -> dict:
        """Weights, optimizers and random generators at the end of a run."""
        content = read_checkpoint(self.snapshots(name) / f"checkpoint_{iterations}.pth")
        return {key: content[key] for key in ("state_dict", "optimizers", "rng")}


@pytest.fixture(scope="module")
def project(cluster, city, tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), city, cluster)


@pytest.fixture(scope="module")
def plain(project) -> dict:
    """The result of the training without Slurm."""
    command = [sys.executable, "scripts/train.py", *project.flags, "--set", "EXP_NAME=plain"]
    subprocess.run(command, cwd=project.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    return project.result("plain")


@pytest.mark.slurm
def test_a_job_trains_and_the_one_after_it_tests(project, plain):
    job = project.submit("train", "EXP_NAME=alone")
    test = project.submit("test", "EXP_NAME=alone", options=(f"--dependency=afterok:{job}",))
    end = project.end_of(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "0"), project.log(job)
    assert same(project.result("alone"), plain)
    assert (project.folder / "logs" / f"dada-train-{job}.out").is_file()
    assert project.end_of(test)["JobState"] == "COMPLETED", project.log(test)
    assert (project.snapshots("alone") / f"test_model_{ITERATIONS}.json").is_file()


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("name", "command", "message"),
    [
        ("warned", "scancel --batch --signal=USR1 {job}", "USR1 received"),
        ("terminated", "scancel --signal=TERM {job}", None),  # the training alone gets it, not the batch script
        ("requeued", "scontrol requeue {job}", "TERM received"),
        ("preempted", "sbatch --partition=urgent --exclusive --output=/dev/null --wrap=true", None),
    ],
)
def test_a_job_that_is_stopped_in_mid_run_goes_on_and_gives_the_same_network(project, plain, name, command, message):
    job = project.submit("train", f"EXP_NAME={name}")
    process = project.freeze(job, name)
    project.cluster.call(*command.format(job=job).split())
    if message:
        project.wait_for_log(job, message, 60)
    else:
        wait_until(lambda: is_signalled(process), 60, "the signal", lambda: project.log(job))
    thaw(process)
    end = project.end_of(job)
    log = project.log(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert 0 < went_on_from(log) < ITERATIONS
    assert same(project.result(name), plain)


@pytest.mark.slurm
def test_a_job_at_its_time_limit_goes_on_with_data_copied_to_the_node(project, plain, city, tmp_path):
    archive = tmp_path / "SYNTHIA.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (city / "SYNTHIA").rglob("*"):
            file.write(path, path.relative_to(city))
    local = tmp_path / "local"
    local.mkdir()
    job = project.submit(
        "train",
        "EXP_NAME=limited",
        "DATA_DIRECTORY_SOURCE=nowhere",
        "DATA_DIRECTORY_TARGET=nowhere",
        options=("--time=3", "--signal=B:USR1@60"),
        STAGE_SOURCE=f"{archive}/SYNTHIA",
        STAGE_TARGET=str(city / "Cityscapes"),
        LOCAL_DISK=str(local),
    )
    process = project.freeze(job, "limited")
    assert sorted(p.name for p in (local / f"dada-{job}").glob("*/*")) == ["Cityscapes", "SYNTHIA.zip"]
    project.wait_for_log(job, "USR1 received", 180)
    project.cluster.call("scontrol", "update", f"jobid={job}", "timelimit=60")  # for the rest, on a slow machine
    thaw(process)
    end = project.end_of(job)
    log = project.log(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log
    assert 0 < went_on_from(log) < ITERATIONS and log.count("Cityscapes is copied to") == 2
    assert same(project.result("limited"), plain)
    assert list(local.iterdir()) == []


@pytest.mark.slurm
def test_after_the_failure_of_its_node_a_job_goes_on_from_the_last_checkpoint(project, plain):
    job = project.submit("train", "EXP_NAME=failed", "TRAIN.CHECKPOINT_EVERY=1")
    process = project.freeze(job, "failed")
    lock = project.snapshots("failed") / "run.lock"
    text = lock.read_text()
    project.cluster.call("scontrol", "update", "nodename=node", "state=down", "reason=test")
    # Until then Slurm would drain the node instead of starting the job there again.
    wait_until(lambda: f"[{job}.0] done with job" in (project.cluster.folder / "slurmd-node.log").read_text(), 60, "the end")
    assert not Path(f"/proc/{process}").exists()
    lock.write_text(text.replace(f'"{socket.gethostname()}"', '"another"'))  # as on a cluster with two nodes
    project.cluster.call("scontrol", "update", "nodename=node", "state=resume")
    end = project.end_of(job)
    log = project.log(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log
    assert "on host another, is gone: its lock is taken over" in log and 0 < went_on_from(log) < ITERATIONS
    assert same(project.result("failed"), plain)


@pytest.mark.slurm
def test_a_cancelled_job_stays_cancelled_and_the_same_command_goes_on(project, plain):
    job = project.submit("train", "EXP_NAME=cancelled")
    process = project.freeze(job, "cancelled")
    project.cluster.call("scancel", job)
    project.wait_for_log(job, "TERM received", 60)
    thaw(process)
    end = project.end_of(job)
    assert (end["JobState"], end["Restarts"]) == ("CANCELLED", "0")
    project.wait_for_log(job, "Slurm is ending it", 30)
    again = project.submit("train", "EXP_NAME=cancelled")
    assert project.end_of(again)["JobState"] == "COMPLETED"
    (iteration,) = re.findall(r"cancelled continues from \S*checkpoint_(\d+)\.pth\n", project.log(again))
    assert 0 < int(iteration) < ITERATIONS
    assert same(project.result("cancelled"), plain)


@pytest.mark.slurm
def test_an_array_trains_and_tests_one_run_for_each_seed(project):
    few = ("EXP_NAME=array", "TRAIN.EARLY_STOP=2")
    job = project.submit("seeds", *few)
    test = project.submit("test", *few, options=("--array=1-3", f"--dependency=aftercorr:{job}"))
    ends = [project.end_of(f"{number}_{seed}") for number in (job, test) for seed in (1, 2, 3)]
    assert [end["JobState"] for end in ends] == ["COMPLETED"] * 6
    folders = [project.snapshots(f"array_seed_{seed}") for seed in (1, 2, 3)]
    contents = [torch.load(folder / "model_2.pth", weights_only=True) for folder in folders]
    assert [content["cfg"]["TRAIN"]["RANDOM_SEED"] for content in contents] == [1, 2, 3]
    assert not same(contents[0]["state_dict"], contents[1]["state_dict"])
    assert all((folder / "test_model_2.json").is_file() for folder in folders)
    assert (project.folder / "logs" / f"dada-seeds-{job}_3.out").is_file()


@pytest.mark.slurm
def test_a_job_with_an_error_fails_with_its_message_and_is_not_requeued(project):
    job = project.submit("train", "EXP_NAME=wrong", "TRAIN.MAX_ITRS=3")
    end = project.end_of(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "1:0", "0")
    log = project.log(job)
    assert "error: " in log and "TRAIN.MAX_ITRS" in log and "exit code 1, not requeued" in log
    assert not project.snapshots("wrong").exists()


FEW = 6  # iterations of two processes: they wait for each other often
SHORT = ("--set", f"TRAIN.MAX_ITERS={FEW}", f"TRAIN.SAVE_PRED_EVERY={FEW}")


@pytest.fixture(scope="module")
def of_two(project) -> dict:
    """The result of two processes without Slurm, which is that of one up to rounding."""
    project.run(sys.executable, "scripts/train.py", *SHORT, "EXP_NAME=of_one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    project.run(*torchrun, "scripts/train.py", *SHORT, "EXP_NAME=of_two")
    one, two = (project.result(name, FEW) for name in ("of_one", "of_two"))
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    return two


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("name", "options", "environment"),
    [
        ("two_tasks", ("--ntasks-per-node=2", "--cpus-per-task=4"), {}),
        ("two_nodes", ("--partition=both", "--nodes=2"), {"MASTER_ADDR": "localhost"}),  # no name server knows them
    ],
)
def test_a_job_of_two_processes_stops_and_goes_on_as_one_would(project, of_two, city, tmp_path, name, options, environment):
    archive = tmp_path / "Cityscapes.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (city / "Cityscapes").rglob("*"):
            file.write(path, path.relative_to(city))
    (tmp_path / "local").mkdir()
    environment = {**environment, "STAGE_TARGET": f"{archive}/Cityscapes", "LOCAL_DISK": str(tmp_path / "local")}
    job = project.submit("train", *SHORT[1:], f"EXP_NAME={name}", options=options, **environment)
    process = project.freeze(job, name)
    project.cluster.call("scancel", "--batch", "--signal=USR1", job)
    project.wait_for_log(job, "USR1 received", 60)
    thaw(process)
    end = project.end_of(job)
    log = project.log(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert 0 < went_on_from(log) < FEW and log.count("2 processes, through gloo") == 2
    assert same(project.result(name, FEW), of_two)
    test = project.submit("test", f"EXP_NAME={name}", options=options, **environment)
    assert project.end_of(test)["JobState"] == "COMPLETED", project.log(test)
    assert list((tmp_path / "local").iterdir()) == []
    report = project.snapshots(name) / f"test_model_{FEW}.json"
    confusion = json.loads(report.read_text())["confusion"]
    project.run(sys.executable, "scripts/test.py", "--set", f"EXP_NAME={name}")
    assert json.loads(report.read_text())["confusion"] == confusion


def went_on_from(log: str) -> int:
    """The iteration of the checkpoint that the second start of a job went on from, as its log says."""
    return int(re.search(r"continues from \S*checkpoint_(\d+)\.pth\n", log.partition("restarts: 1")[2])[1])


def is_signalled(process: int) -> bool:
    """Whether a signal waits for a frozen process, or has thawed and ended it, as Slurm's own do."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True
    return any(int(mask, 16) for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s+(\w+)", status, re.MULTILINE))


def thaw(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
