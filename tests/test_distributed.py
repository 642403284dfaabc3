"""Two processes are one process with the joint batch: losses, gradients, whole runs, tests, and how they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tiny import TinyNetwork, random_batch, same, tiny_options
from torch import nn

from dada import config
from dada.build import source_loader
from dada.cli import shared
from dada.cli.shared import reporting_errors
from dada.config import cfg, cfg_from_list
from dada.domain_adaptation import adversarial
from dada.domain_adaptation.association.ring import ring_association_loss
from dada.domain_adaptation.cycle_association import cycle_association_loss
from dada.domain_adaptation.objectives import Term, build_objective
from dada.domain_adaptation.teacher import Teacher
from dada.evaluation.tester import evaluate_run as run_test
from dada.model.batch_norm import convert_domain_batch_norm
from dada.model.discriminator import FCDiscriminator
from dada.normalization import TORCHVISION_RGB
from dada.parallel import ranks
from dada.parallel.distributed import processes
from dada.parallel.joint_batch_norm import JointBatchNorm, join_batch_norms
from dada.parallel.place import place
from dada.parallel.ranks import joint_max, joint_mean, joint_sum
from dada.runs import run_of
from dada.training import trainer as trainer_module
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.trainer import Trainer, build_optimizer

CPU = torch.device("cpu")
K = 5


# --- two processes that wait for work ------------------------------------------------------------------------


class Pair:
    """Two processes in one group; `pair(function, *args)` calls it in both and returns both results."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("fork")  # of this process, which has imported torch
        self._pipes, self._processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(folder / "store"), theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __call__(self, function, *args) -> list:
        for pipe in self._pipes:
            pipe.send((function, args))
        results = []
        for pipe in self._pipes:
            assert pipe.poll(300), "a process hangs"
            results.append(pickle.loads(pipe.recv_bytes()))
        return results

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def _serve(rank: int, store: str, pipe) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    while (task := pipe.recv()) is not None:
        function, args = task
        try:
            result = function(*args)
        except BaseException as error:
            result = error if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        pipe.send_bytes(pickle.dumps(result))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.end()


# --- means, counts and batch norm ----------------------------------------------------------------------------


def test_a_mean_over_ranks_counts_pixels_and_an_empty_rank_adds_nothing(pair):
    for counts, mean, gradients in (((3, 1), 2.5, (0.75, 0.25)), ((0, 2), 4.0, (0.0, 1.0)), ((0, 0), 0.0, (0.0, 0.0))):
        assert pair(_mean_of, counts) == [(mean, gradient, 6.0, 4.0) for gradient in gradients]
    x = torch.tensor(2.0)
    assert joint_mean(x, 0) is x  # in one process


def _mean_of(counts):
    own = torch.tensor((2.0, 4.0)[ranks.rank()], requires_grad=True)
    mean = joint_mean(own, counts[ranks.rank()])
    mean.backward()
    return mean.item(), own.grad.item(), joint_sum(own).item(), joint_max(own).item()


@pytest.mark.parametrize("metric, alpha", [("cos", 0.5), ("kl", 0.5), ("cos", 0.0)])
def test_two_ranks_with_half_of_the_pixels_each_associate_the_whole_images(pair, metric, alpha):
    g = torch.Generator().manual_seed(0)
    source, target = (torch.randn(2, 5, 6, width, generator=g, dtype=torch.float64) for width in (7, 5))
    source[0, :, 0, 0] = 0 if metric == "cos" else 1
    source[:, :, 5, 3], target[:, :, 4, 2] = source[:, :, 1, 1], target[:, :, 0, 4]  # equal ones on both ranks
    if metric == "kl":
        source, target = source.softmax(1), target.softmax(1)
    labels = torch.randint(0, 3, (2, 6, 7), generator=g)
    labels[labels == 2] = 255
    source.requires_grad_(), target.requires_grad_()
    options = {"metric": metric, "aggregate": alpha > 0, "alpha": alpha, "impl": "dense"}
    want = cycle_association_loss(source, target, labels, **options)
    want.loss.backward()
    alone = _ring(source.detach(), target.detach(), labels, metric, alpha)
    found = pair(_ring, source.detach(), target.detach(), labels, metric, alpha)
    for loss, closed, *_ in (alone, *found):
        assert closed == want.closed.item() > 0
        assert loss == pytest.approx(want.loss.item(), rel=1e-12)
    for mine, grads in ((slice(0, 6), alone[2:]), (slice(0, 3), found[0][2:]), (slice(3, 6), found[1][2:])):
        for grad, whole in zip(grads, (source.grad, target.grad)):
            torch.testing.assert_close(grad, whole[:, :, mine], rtol=1e-9, atol=1e-12)


def _ring(source, target, labels, metric, alpha):
    ways = [x.chunk(ranks.world_size(), dim=-2)[ranks.rank()] for x in (source, target, labels)]
    x, y = (way.clone().requires_grad_() for way in ways[:2])
    loss, closed = ring_association_loss(x, y, ways[2], metric=metric, alpha=alpha)
    loss.backward()
    return loss.item(), closed.item(), x.grad, y.grad


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_sees_the_joint_batch_forward_and_backward(pair, momentum):
    halves = pair(_normalized, momentum)
    whole = _normalized(momentum)
    for name, value in whole.items():
        parts = [half[name] for half in halves]
        joint = torch.cat(parts) if name in ("out", "grad") else sum(parts) if name.startswith("d_") else parts[0]
        torch.testing.assert_close(joint, value, rtol=1e-10, atol=1e-12, msg=name)


def _normalized(momentum) -> dict[str, torch.Tensor]:
    from dada.model.timm_encoder import timm

    g = torch.Generator().manual_seed(3)
    x = (2 + 3 * torch.randn(4, 6, 5, 7, generator=g, dtype=torch.float64)).chunk(ranks.world_size())[ranks.rank()]
    weight = torch.randn(4, 6, 5, 7, generator=g, dtype=torch.float64).chunk(ranks.world_size())[ranks.rank()]
    x.requires_grad_()
    norm = timm.layers.BatchNormAct2d(6, momentum=momentum, act_layer=nn.SiLU).double()
    names = list(norm.state_dict())
    norm = join_batch_norms(norm, CPU)
    assert isinstance(norm, JointBatchNorm) == (ranks.world_size() > 1) and list(norm.state_dict()) == names
    for _ in range(2):
        out = norm(x)
    (out * weight).sum().backward()
    result = {"out": out.detach(), "grad": x.grad, "d_weight": norm.weight.grad, "d_bias": norm.bias.grad}
    result |= {name: value.clone() for name, value in norm.state_dict().items()}
    before = norm.running_mean.clone()
    result["eval"] = norm.eval()(torch.ones(1, 6, 2, 2, dtype=torch.float64)).detach()
    assert torch.equal(norm.running_mean, before)
    return result


# --- every method --------------------------------------------------------------------------------------------

ADVERSARIAL = ["TRAIN.LAMBDA_ADV_MAIN=1", "TRAIN.LAMBDA_ADV_AUX=0.5", "TRAIN.LEARNING_RATE_D=0.01"]
METHODS = {
    "source_only with Lovasz": ["TRAIN.LAMBDA_LOVASZ=1"],
    "MinEnt": ["TRAIN.DA_METHOD=MinEnt", "TRAIN.LAMBDA_ENT_MAIN=1", "TRAIN.LAMBDA_ENT_AUX=1", "TRAIN.MULTI_LEVEL=True"],
    "AdvEnt": ["TRAIN.DA_METHOD=AdvEnt", "TRAIN.MULTI_LEVEL=True", *ADVERSARIAL],
    "DADA": ["TRAIN.DA_METHOD=DADA", "USE_DEPTH=True", "TRAIN.LAMBDA_DEPTH_MAIN=1", *ADVERSARIAL],
    "association": [  # and labelled images of the target beside it
        "TARGET_LABELLED=all",
        "CONTRASTIVE_LEARNING=True",
        "TRAIN.LAMBDA_ENTROPY=1",
        "TRAIN.CONSISTENCY_THRESHOLD=0.3",
        "TRAIN.LSR_W=1",
        "TRAIN.CONTRASTIVE_START=1",
        "TRAIN.LAMBDA_CONTRASTIVE_MAIN=1",
    ],
    "a teacher": [  # with nothing hidden and no colours changed, as those are drawn by each rank for itself
        "SELF_TRAINING.LAMBDA_MIC=1",
        "SELF_TRAINING.MIC_RATIO=0",
        "SELF_TRAINING.THRESHOLD=0.24",
        "SELF_TRAINING.COLOR_JITTER=0",
        "SELF_TRAINING.BLUR=0",
        "SELF_TRAINING.START=1",
    ],
    "PLCA_adv with domain batch norms, accumulated": [
        "TRAIN.DA_METHOD=PLCA_adv",
        "CONTRASTIVE_LEARNING=True",
        "TRAIN.DOMAIN_BN=True",
        "TRAIN.ITER_SIZE=2",
        *ADVERSARIAL,
    ],
}


class Network(TinyNetwork):
    """With batch norm, in 64 bits: a difference is one of the method, not of rounding. The auxiliary head may go unused."""

    def __init__(self) -> None:
        super().__init__(K, aux=True, depth=cfg.USE_DEPTH)
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(6))
        if cfg.TRAIN.DOMAIN_BN:
            convert_domain_batch_norm(self)
        self.double()


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one_with_the_joint_batch(pair, method):
    first, second = pair(_trained, METHODS[method])
    assert same(first, second)
    weights, values = _trained(METHODS[method])
    assert first[1] == [pytest.approx(expected, rel=1e-9, abs=1e-12) for expected in values]
    for name, value in weights.items():
        torch.testing.assert_close(first[0][name], value, rtol=1e-8, atol=1e-10, msg=name)


def _trained(pairs: list[str]) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and statistics of all networks, and the reported values, after three iterations on this rank's images."""
    config.reset()
    cfg_from_list(["NUM_CLASSES=5", "TRAIN.LEARNING_RATE=0.02", *pairs])
    torch.manual_seed(0)
    network = join_batch_norms(Network().train(), CPU)
    with mock.patch.object(adversarial, "FCDiscriminator", partial(FCDiscriminator, ndf=4)):
        objective = build_objective(cfg, CPU, TORCHVISION_RGB)
    for adversary in objective.adversaries:
        adversary.discriminator.double()
    teacher = Teacher(network, 0.9) if objective.uses_teacher else None
    options = {"max_iterations": 4, "iter_size": cfg.TRAIN.ITER_SIZE, "teacher": teacher}
    trainer = Trainer(network, objective, build_optimizer(network, cfg), **options)
    seeds = range(3 * cfg.TRAIN.ITER_SIZE)
    batches = iter([(_part(seed), _part(100 + seed, labelled=False), _part(201 + seed)) for seed in seeds])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    values = [trainer.iterate(iteration, batches)[0] for iteration in range(3)]
    after = network.state_dict()
    assert not all(torch.equal(after[name], before[name]) for name in before if "head_main" in name)
    states = {f"{k} {n}": v for k, a in enumerate(objective.adversaries) for n, v in a.discriminator.state_dict().items()}
    if teacher is not None:
        states |= {f"teacher {name}": value for name, value in teacher.network.state_dict().items()}
    return {**after, **states}, values


def _part(seed: int, labelled: bool = True):
    """The images of this rank: unequal numbers of labelled pixels, none in the second half of every other batch."""
    batch = random_batch(4, (32, 40), K, seed, labelled=labelled)
    if labelled:
        batch.label[0, :20] = 255
        batch.label[2:, : 32 if seed % 2 else 7] = 255
        batch.depth[2:, : 32 if seed % 2 else 7] = 1
        batch.label[:2][batch.label[:2] == 4] = 3  # a class that only the second half shows
    size = 4 // ranks.world_size()
    own = slice(ranks.rank() * size, (ranks.rank() + 1) * size)
    fields = (f[own] if isinstance(f, torch.Tensor) else f for f in batch)
    return type(batch)(*(f.double() if torch.is_tensor(f) and f.is_floating_point() else f for f in fields))


# --- whole runs ----------------------------------------------------------------------------------------------


class SmallNetwork(TinyNetwork):
    normalization = TORCHVISION_RGB

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(6), nn.Dropout(dropout))


def _run(pairs: list[str], dropout: float = 0.0, act=None, **options) -> None:
    """Train in the cfg of `pairs`; `act(trainer, iteration)` is called before every iteration."""
    config.reset()
    cfg_from_list(pairs)
    original = Trainer.iterate

    def iterate(self, iteration, batches):
        if act is not None:
            act(self, iteration)
        return original(self, iteration, batches)

    build = mock.patch.object(trainer_module, "build_network", lambda cfg, **_: SmallNetwork(cfg.NUM_CLASSES, dropout))
    with build, mock.patch.object(Trainer, "iterate", iterate):
        train(cfg, run_of(cfg), **options)


@pytest.fixture
def pairs(city, tmp_path) -> list[str]:
    options = [*tiny_options(city, tmp_path), "TRAIN.DA_METHOD=MinEnt", "TRAIN.LEARNING_RATE=0.01", "TRAIN.MAX_ITERS=4"]
    return [*options, "DATA_TRANSFORM.CROPSIZE=32", "DATA_TRANSFORM.FLIP=0.5", "TRAIN.CHECKPOINT_EVERY=2"]


def folder(tmp_path: Path, name: str) -> Path:
    return tmp_path / "snapshots" / name


def test_a_run_of_two_processes_reads_the_same_images_and_writes_the_same_files_as_one(pair, pairs, tmp_path, capfd):
    pairs += ["SOURCE=[SYNTHIA, SYNTHIA]", "SOURCE_SHARE=[2, 1]", "TARGET=[Cityscapes, Cityscapes]", "TARGET_LABELLED=[3, 2]"]
    pairs += ["TRAIN.BATCH_SIZE_LABELLED=2"]
    assert pair(_run, [*pairs, "EXP_NAME=two"]) == [None, None]
    _run([*pairs, "EXP_NAME=one"])
    one, two = (folder(tmp_path, name) for name in ("one", "two"))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    a, b = (read_checkpoint(p / "checkpoint_4.pth") for p in (one, two))
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(b["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert len(b["rng_of_others"]) == 1 and "rng_of_others" not in a


def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_exact(pair, pairs, tmp_path):
    assert pair(_run, [*pairs, "EXP_NAME=whole"], 0.3) == [None, None]
    stopped = pair(_run, [*pairs, "EXP_NAME=stopped"], 0.3, _signal_to_the_second)
    assert [str(code) for code in stopped] == ["138", "138"]
    assert not (folder(tmp_path, "stopped") / "run.lock").exists()
    resumed = partial(_run, resume="auto")
    assert pair(resumed, [*pairs, "EXP_NAME=stopped"], 0.3) == [None, None]
    a, b = (read_checkpoint(folder(tmp_path, name) / "checkpoint_4.pth") for name in ("whole", "stopped"))
    for key in ("state_dict", "optimizers", "rng", "rng_of_others"):
        assert same(a[key], b[key]), key
    assert not same(a["rng"]["torch"], a["rng_of_others"][0]["torch"])  # dropout differs between the halves of a batch


def _signal_to_the_second(trainer: Trainer, iteration: int) -> None:
    if ranks.rank() == 1 and iteration == 0:
        os.kill(os.getpid(), signal.SIGUSR1)


def test_another_number_of_processes_may_go_on_and_is_told_what_that_costs(pair, pairs, tmp_path, caplog):
    pair(_run, [*pairs, "EXP_NAME=fewer", "TRAIN.EARLY_STOP=2"])
    _run([*pairs, "EXP_NAME=fewer"], resume="auto")
    assert "written by a run of 2 processes, this one has 1" in caplog.text
    assert (folder(tmp_path, "fewer") / "model_4.pth").is_file()


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_and_that_rank_saves_its_step(pair, pairs, tmp_path):
    first, second = pair(_run, [*pairs, "EXP_NAME=nan"], 0.0, _break_the_second)
    assert first == second and "NonFiniteLoss: iteration 1: loss_x = nan" in first
    saved = [p.name for p in folder(tmp_path, "nan").glob("post_mortem*")]
    assert saved == ["post_mortem_rank1_1.pth"] and saved[0] in first


def _break_the_second(trainer: Trainer, iteration: int) -> None:
    broken = iteration == 1 and ranks.rank() == 1

    def term(step):
        own = step.source_logits.mean() * (float("nan") if broken else 1.0)
        return joint_mean(own, 1)

    trainer.objective.terms[:] = [t for t in trainer.objective.terms if t.name != "loss_x"] + [Term("loss_x", 1.0, term)]


def test_bad_files_of_both_processes_are_counted_by_both(pair, pairs, tmp_path, city):
    broken = tmp_path / "SYNTHIA"
    shutil.copytree(city / "SYNTHIA", broken)
    images = sorted((broken / "RGB").glob("*.png"))
    images[0].write_bytes(b"no picture")
    options = [*pairs, "EXP_NAME=bad", f"DATA_DIRECTORY_SOURCE={broken}", "ON_BAD_FILE=skip"]
    assert pair(_run, options) == [None, None]
    _run([*options, "EXP_NAME=bad_alone"])
    two, one = (read_checkpoint(folder(tmp_path, name) / "checkpoint_4.pth")["bad_files"] for name in ("bad", "bad_alone"))
    assert two == one and sum(one["times"].values()) > 0 and one["draws"] == 16


def test_batches_that_cannot_be_divided_are_refused_by_name(pair, pairs):
    for message in pair(_loader, [*pairs, "TRAIN.BATCH_SIZE_SOURCE=3"]):
        assert "TRAIN.BATCH_SIZE_SOURCE is 3" in message and "2 processes" in message and "Set it to 4" in message


def _loader(pairs: list[str]):
    config.reset()
    cfg_from_list(pairs)
    return source_loader(cfg, TORCHVISION_RGB, steps=1)


def test_a_test_of_two_processes_gives_the_report_of_one(pair, pairs, tmp_path):
    _run([*pairs, "EXP_NAME=tested", "TRAIN.MAX_ITERS=1"])
    path = folder(tmp_path, "tested") / "test_model_1.json"
    for options in ([], ["TEST.BATCH_SIZE_TARGET=2"]):  # the second process has an image, and none
        _tested([*pairs, "EXP_NAME=tested", *options])
        one = json.loads(path.read_text())
        path.unlink()
        assert pair(_tested, [*pairs, "EXP_NAME=tested", *options]) == [None, None]
        assert json.loads(path.read_text()) == one and sum(map(sum, one["confusion"])) > 0


def _tested(pairs: list[str]) -> None:
    from dada.evaluation import tester

    config.reset()
    cfg_from_list(pairs)
    run = run_of(cfg)

    def build(cfg, path, **options):
        network = SmallNetwork(cfg.NUM_CLASSES, 0.0)
        network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        return network

    cfg_from_list([f"TEST.RESTORE_FROM=[{run.snapshots / 'model_1.pth'}]"])
    with mock.patch.object(tester, "build_network", build):
        run_test(cfg, run)


# --- how processes find each other, and how they end ---------------------------------------------------------

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu7", "MASTER_PORT": "29400"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "20001",
    "SLURM_STEP_NUM_NODES": "4",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, (3, 8, 1, "gpu7", 29400)),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}, None),
        ({**SRUN, **TORCHRUN, "RANK": "2"}, (2, 8, 1, "gpu7", 29400)),
        ({**SRUN, "SLURM_STEP_NODELIST": "gpu[03-05,9],login"}, (3, 8, 1, "gpu03", 18001)),
        ({**SRUN, "SLURM_STEP_NODELIST": "a-1,b[2-3]"}, (3, 8, 1, "a-1", 18001)),
        ({**SRUN, "SLURM_STEP_NODELIST": "n[7]-ib"}, (3, 8, 1, "n7-ib", 18001)),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n7"}, (3, 8, 1, "localhost", 18001)),
        ({**SRUN, "MASTER_ADDR": "x", "MASTER_PORT": "1"}, (3, 8, 1, "x", 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"}, None),  # the batch script itself
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        # What a platform or an image sets for a process of its own
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "23456"}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"RANK": "1"}, None),
        ({"WORLD_SIZE": "", "LOCAL_RANK": "0"}, None),
        ({**SRUN, "WORLD_SIZE": "1", "SLURM_STEP_NUM_NODES": "1"}, (3, 8, 1, "localhost", 18001)),
        ({**SRUN, **TORCHRUN, "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}, None),  # a torchrun in each task
    ],
)
def test_the_place_of_a_process_is_what_torchrun_or_srun_say(environment, expected):
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "1", "WORLD_SIZE": "two"}, ["torchrun", "WORLD_SIZE='two'"]),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, ["LOCAL_RANK=''", "set LOCAL_RANK to 0"]),
        ({"SLURM_STEP_NUM_TASKS": "2x"}, ["SLURM_STEP_NUM_TASKS='2x'"]),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, ["LOCAL_RANK='x'"]),
        ({**SRUN}, ["SLURM_STEP_NODELIST", "MASTER_ADDR"]),
    ],
)
def test_an_incomplete_environment_is_named(environment, words):
    with pytest.raises(ValueError) as error:
        place(environment)
    assert all(word in str(error.value) for word in words)


def test_steps_of_one_job_and_jobs_beside_it_take_ports_of_their_own():
    where = {**SRUN, "SLURM_STEP_NUM_NODES": "1"}
    ports = [
        place({**where, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
        for job in range(777, 797)
        for step in range(20)
    ]
    assert len(set(ports)) == len(ports)
    assert all(15000 <= port < 32768 for port in ports)
    assert place({**where, "SLURM_STEP_ID": "4294967290"}).port > 0  # an interactive step


def launched(main: Callable[[], None], folder: Path) -> list[tuple[multiprocessing.Process, Path]]:
    """Two processes that run `main` inside of `processes`, as torchrun would start them, and what each says on stderr."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for r in range(2):
        said = folder / f"{main.__name__}_{r}.txt"
        process = multiprocessing.get_context("fork").Process(target=_as_a_script, args=(main, r, port, said))
        process.start()
        started.append((process, said))
    return started


def _as_a_script(main: Callable[[], None], rank: int, port: int, said: Path) -> None:
    torch.set_num_threads(1)
    sys.stderr = said.open("w", buffering=1)
    where = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()})

    shared._PROJECT = (shared._PROJECT, str(Path(__file__).parent))  # or it would be code of one's own, with a traceback

    def inside() -> None:
        cfg.DEVICE = "cpu"
        with processes(cfg):
            main()

    reporting_errors(inside)


def one_fails() -> None:
    if ranks.rank() == 1:
        raise ValueError("the disk is on fire")
    ranks.every_rank(None)
    ranks.every_rank(None)


def all_fail() -> None:
    raise FileNotFoundError("there is no data/Nowhere")


def test_a_process_that_fails_ends_the_others_with_its_message_and_a_common_error_is_told_once(tmp_path):
    started = [launched(main, tmp_path) for main in (one_fails, all_fail)]
    for process, _ in (both := started[0] + started[1]):
        process.join(200)
    assert [process.exitcode for process, _ in both] == [1, 1, 1, 1]
    (first, second), either = ([said.read_text() for _, said in two] for two in started)
    assert "error: the disk is on fire" in second
    assert "error: process 1 of 2 has failed: ValueError: the disk is on fire" in first and "Traceback" not in first
    assert sorted(text.count("error: there is no data/Nowhere") for text in either) == [0, 1]
