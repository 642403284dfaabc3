"""The training loop: how often and at what rate it moves the network, when it stops, and what it leaves on disk."""

import math
import shutil

import pytest
import torch
from tiny import TinyNetwork, random_batch, tiny_options

from dada import config
from dada.build import source_loader, target_loader
from dada.config import cfg, cfg_from_file, cfg_from_list, plain_cfg, save_cfg
from dada.dataset import Batch
from dada.domain_adaptation.objectives import Objective, Term, build_objective
from dada.model import build_model
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training.loop import is_finished, last_iteration, train
from dada.training.prefetch import paired
from dada.training.schedule import poly_lr
from dada.training.trainer import NonFiniteLoss, Trainer, build_optimizer

CPU = torch.device("cpu")
K = 5


def network(**options) -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork(K, **options)


def state(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trainer_of(net, *pairs: str, **options) -> Trainer:
    cfg_from_list(pairs)
    return Trainer(net, build_objective(cfg, CPU), build_optimizer(net, cfg), **{"max_iterations": 10, **options})


def half(batch: Batch, part: slice) -> Batch:
    return Batch(*(field[part] if field is not None else None for field in batch))


# --- one iteration -------------------------------------------------------------------------------------------


def test_accumulated_steps_equal_one_larger_batch():
    source, target = random_batch(4, seed=1), random_batch(4, seed=2, labelled=False)
    halves = [(half(source, p), half(target, p)) for p in (slice(0, 2), slice(2, 4))]
    finals, reported = [], []
    for iter_size, batches in ((1, [(source, target)]), (2, halves)):
        net = network()
        trainer = trainer_of(
            net, "TRAIN.DA_METHOD=MinEnt", "TRAIN.LAMBDA_ENT_MAIN=1", "TRAIN.LEARNING_RATE=0.1", iter_size=iter_size
        )
        values = trainer.iterate(0, iter(batches)).values
        finals.append(state(net))
        reported.append(values)
    assert not same(finals[0], state(network()))
    for name, value in finals[0].items():
        torch.testing.assert_close(finals[1][name], value, rtol=1e-5, atol=1e-7)
    assert reported[0] == pytest.approx(reported[1], rel=1e-5)


def test_an_iteration_takes_iter_size_batches_and_reports_unweighted_means():
    values = iter([1.0, 3.0, 10.0])
    net = network()
    objective = Objective([Term("loss_x", 0.5, lambda step: step.source_logits.sum() * 0 + next(values))], [])
    trainer = Trainer(net, objective, build_optimizer(net, cfg), max_iterations=10, iter_size=2)
    batches = iter([(random_batch(), None)] * 3)
    assert trainer.iterate(0, batches)[0] == {"loss_x": 2.0}
    assert len(list(batches)) == 1


def test_the_rate_of_every_group_and_discriminator_follows_the_schedule():
    net = TinyNetwork(16)
    trainer = trainer_of(net, "TRAIN.DA_METHOD=AdvEnt", power=0.9, warmup=3)
    groups = [g for o in trainer.optimizers for g in o.param_groups]
    bases = [cfg.TRAIN.LEARNING_RATE, 10 * cfg.TRAIN.LEARNING_RATE, cfg.TRAIN.LEARNING_RATE_D]
    batch = random_batch(1, (32, 32)), random_batch(1, (32, 32), labelled=False)
    for iteration in (0, 1, 2, 3, 9):
        trainer.iterate(iteration, iter([batch]))
        expected = [poly_lr(base, iteration, 10, 0.9, 3) for base in bases]
        assert [g["lr"] for g in groups] == pytest.approx(expected)
    assert expected[0] < bases[0] / 5  # the last of ten iterations


def test_bfloat16_autocast_gives_float32_losses_near_those_of_float32():
    reported = []
    for autocast in (False, True):
        net = TinyNetwork(16)
        net.load_state_dict(
            {name: torch.sin(torch.arange(v.numel()).float()).view(v.shape) for name, v in net.state_dict().items()}
        )
        trainer = trainer_of(
            net, "CONTRASTIVE_LEARNING=True", "TRAIN.DA_METHOD=MinEnt", "TRAIN.LAMBDA_LOVASZ=1", autocast=autocast
        )
        batches = [(random_batch(seed=1), random_batch(seed=2, labelled=False))]
        values, step, _ = trainer.iterate(0, iter(batches))
        losses = trainer.objective(step, 0).terms
        assert {value.dtype for _, value in losses.values()} == {torch.float32}
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.parameters())
        reported.append(values)
    for name in ("loss_seg_src_main", "loss_lovasz", "loss_ent_main"):
        assert reported[1][name] == pytest.approx(reported[0][name], rel=0.02), name
    assert reported[0] != reported[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_stops_before_anything_moves_and_is_named(bad):
    net = network()

    def loss_bad(step):
        return step.target_outputs.logits.mean() * (bad if "image_9" in step.target.name[0] else 1)

    terms = [Term("loss_good", 1.0, lambda step: step.source_logits.mean()), Term("loss_bad", 1.0, loss_bad)]
    trainer = Trainer(net, Objective(terms, []), build_optimizer(net, cfg), max_iterations=10, iter_size=2)
    before = state(net)
    good, broken = (random_batch(seed=1), random_batch(seed=2)), (random_batch(seed=3), random_batch(seed=9))
    with pytest.raises(NonFiniteLoss) as error:
        trainer.iterate(4, iter([good, broken]))
    text = str(error.value)
    assert "iteration 4" in text and "loss_bad = " in text and "loss_good" not in text
    assert all(name in text for name in ("image_3_0.png", "image_3_1.png", "image_9_0.png"))
    assert "image_1_0" not in text  # of the step that went well
    assert same(before, state(net))
    assert not any(trainer.optimizers[0].state.values())  # no momentum either


def test_a_discriminator_whose_loss_is_not_finite_stops_too():
    net = TinyNetwork(16)
    trainer = trainer_of(net, "TRAIN.DA_METHOD=AdvEnt")
    (adversary,) = trainer.objective.adversaries
    learn = adversary.learn
    adversary.learn = lambda step, scale: {**learn(step, scale), "loss_d_src_main": torch.tensor(math.nan)}
    before = state(net), state(adversary.discriminator)
    with pytest.raises(NonFiniteLoss, match="loss_d_src_main = nan"):
        trainer.iterate(0, iter([(random_batch(1, (32, 32)), random_batch(1, (32, 32)))]))
    assert same(before[0], state(net)) and same(before[1], state(adversary.discriminator))


# --- optimizers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,kind", [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_backbone_and_heads_are_stepped_once_each_at_their_rates(name, kind):
    net = build_model("resnet-18", K)
    cfg_from_list(
        [
            f"TRAIN.OPTIMIZER={name}",
            "TRAIN.LEARNING_RATE=1e-3",
            "TRAIN.LR_MULT=5",
            "TRAIN.WEIGHT_DECAY=0.02",
            "TRAIN.MOMENTUM=0.8",
        ]
    )
    optimizer = build_optimizer(net, cfg)
    assert type(optimizer) is kind
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 5e-3]
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.02}
    assert name != "SGD" or {g["momentum"] for g in optimizer.param_groups} == {0.8}
    listed = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(listed) == len({id(p) for p in listed}) == sum(p.requires_grad for p in net.parameters())
    heads = {id(p) for p in net.parameter_groups()["head"]}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == heads


# --- batches -------------------------------------------------------------------------------------------------


def test_pairs_hold_none_for_a_target_that_no_term_reads():
    source, target = [random_batch(seed=k) for k in (1, 2)], [random_batch(seed=k) for k in (3, 4)]
    assert [(s.name[0], t) for s, t in paired(source, None)] == [("image_1_0.png", None), ("image_2_0.png", None)]
    assert [(s.name[0], t.name[0]) for s, t in paired(source, target)] == [
        ("image_1_0.png", "image_3_0.png"),
        ("image_2_0.png", "image_4_0.png"),
    ]


@pytest.mark.parametrize("early_stop,expected", [(0, 40), (30, 30), (40, 40), (50, 40)])
def test_early_stop_ends_a_run_but_never_lengthens_it(early_stop, expected):
    cfg_from_list(["TRAIN.MAX_ITERS=40", f"TRAIN.EARLY_STOP={early_stop}"])
    assert last_iteration(cfg) == expected


# --- whole runs on the small city ----------------------------------------------------------------------------


ADAPTED = [
    "CONTRASTIVE_LEARNING=True",
    "TRAIN.LAMBDA_CONSISTENCY=1",
    "DATA_TRANSFORM.COLOR_JITTER=0.2",
    "DATA_TRANSFORM.FLIP=0.5",
]


def files_below(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} if folder.exists() else set()


def trained(*pairs: str, suffix: str = "") -> dict[str, torch.Tensor]:
    cfg_from_list(pairs)
    return state(train(cfg, run_of(cfg, suffix)))


def test_one_seed_gives_one_network_whatever_the_number_of_workers(tiny_cfg):
    first = trained(*ADAPTED)
    torch.randn(7)  # the global random state is not what a run depends on
    assert same(first, trained("NUM_WORKERS=0", suffix="again"))
    assert same(first, trained("NUM_WORKERS=1", suffix="one_worker"))
    assert not same(first, trained("NUM_WORKERS=0", "TRAIN.RANDOM_SEED=5", suffix="other_seed"))


def test_a_run_leaves_its_cfg_and_whole_snapshots_and_nothing_else(tiny_cfg, tmp_path):
    net = trained("TRAIN.MAX_ITERS=3", "TRAIN.SAVE_PRED_EVERY=2")
    folder = tmp_path / "runs" / "snapshots" / "tiny"
    assert files_below(tmp_path / "runs") == {
        f"snapshots/tiny/{name}"
        for name in ("train_cfg.yml", "model_2.pth", "checkpoint_2.pth", "model_3.pth", "checkpoint_3.pth")
    }
    last = torch.load(folder / "model_3.pth", weights_only=True)
    assert same(last["state_dict"], net) and last["iter"] == 3
    earlier = torch.load(folder / "model_2.pth", weights_only=True)
    assert not same(earlier["state_dict"], net) and earlier["iter"] == 2
    resolved = plain_cfg(cfg)
    assert last["cfg"] == resolved
    config.reset()
    cfg_from_file(folder / "train_cfg.yml")
    assert plain_cfg(cfg) == resolved


def test_early_stop_saves_its_last_iteration(tiny_cfg, tmp_path):
    trained("TRAIN.MAX_ITERS=5", "TRAIN.EARLY_STOP=1")
    assert files_below(tmp_path / "runs/snapshots/tiny") == {"train_cfg.yml", "model_1.pth", "checkpoint_1.pth"}


def test_a_run_is_finished_when_its_last_snapshot_was_trained_with_the_very_cfg(tiny_cfg):
    run = run_of(cfg)
    assert not is_finished(cfg, run)
    trained("TRAIN.MAX_ITERS=2", "TRAIN.EARLY_STOP=1")
    assert is_finished(cfg, run)
    cfg_from_list(["TRAIN.EARLY_STOP=2"])
    assert not is_finished(cfg, run)
    # Another run in the same folder that stopped before its snapshot has left its cfg, not its network.
    cfg_from_list(["TRAIN.EARLY_STOP=1", "TRAIN.LEARNING_RATE=0.5"])
    save_cfg(cfg, run.snapshots / "train_cfg.yml")
    assert not is_finished(cfg, run)


def test_a_run_stays_finished_when_only_what_leaves_its_weights_alone_has_changed(tiny_cfg):
    trained("TRAIN.MAX_ITERS=1")
    cfg_from_list(["NUM_WORKERS=3", "TRAIN.SAVE_PRED_EVERY=7", "TEST.FLIP=True"])
    assert is_finished(cfg, run_of(cfg))


def test_a_source_only_run_reads_nothing_of_the_target(tiny_cfg, tmp_path):
    trained(f"DATA_DIRECTORY_TARGET={tmp_path / 'nowhere'}", "TRAIN.MAX_ITERS=1")


def test_an_adapted_run_needs_no_target_labels(city, tiny_cfg, tmp_path):
    shutil.copytree(city / "Cityscapes/leftImg8bit", tmp_path / "unlabelled/leftImg8bit")
    trained(*ADAPTED, f"DATA_DIRECTORY_TARGET={tmp_path / 'unlabelled'}", "TRAIN.MAX_ITERS=1")


@pytest.mark.parametrize("domain", ["SOURCE", "TARGET"])
def test_a_missing_folder_is_reported_before_anything_is_written(tiny_cfg, tmp_path, domain):
    cfg_from_list([*ADAPTED, f"DATA_DIRECTORY_{domain}={tmp_path / 'nowhere'}"])
    with pytest.raises(FileNotFoundError, match=f"Set DATA_DIRECTORY_{domain} to"):
        train(cfg, run_of(cfg), tensorboard=True)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_leaves_its_step_but_no_snapshot_and_no_log(tiny_cfg, tmp_path):
    cfg_from_list(["TRAIN.LEARNING_RATE=1e30", "TRAIN.MAX_ITERS=9"])
    with pytest.raises(NonFiniteLoss, match="loss_seg_src_main"):
        train(cfg, run_of(cfg))
    assert files_below(tmp_path / "runs") == {"snapshots/tiny/train_cfg.yml", "snapshots/tiny/post_mortem_1.pth"}


def test_a_file_that_breaks_in_the_first_batch_leaves_nothing_at_all(city, tmp_path):
    shutil.copytree(city, tmp_path / "city")
    for path in (tmp_path / "city/SYNTHIA/RGB").iterdir():
        path.write_bytes(path.read_bytes()[:400])
    cfg_from_list(tiny_options(tmp_path / "city", tmp_path / "runs"))
    with pytest.raises(ValueError, match=r"cannot read .*RGB.* cut short or damaged"):
        train(cfg, run_of(cfg), tensorboard=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("method", ["MinEnt", "AdvEnt"])
def test_every_method_trains_with_association_on_top(tiny_cfg, method):
    trained(*ADAPTED, f"TRAIN.DA_METHOD={method}", "TRAIN.MAX_ITERS=1", "TRAIN.BF16=True", "TRAIN.CHANNELS_LAST=True")


@pytest.fixture(scope="module")
def plain_run(city, tmp_path_factory):
    """The network that two iterations with the options at their defaults give."""
    config.reset()
    cfg_from_list(tiny_options(city, tmp_path_factory.mktemp("plain")))
    return trained(*ADAPTED)


@pytest.mark.parametrize(
    "option",
    [
        "EXP_NAME=same",
        "ALIGN_CORNERS=False",
        "TRAIN.POWER=0",
        "TRAIN.WARMUP_ITERS=2",
        "TRAIN.ITER_SIZE=2",
        "TRAIN.BF16=True",
        "TRAIN.MAX_ITERS=3",
        "TRAIN.OPTIMIZER=AdamW",
        "TRAIN.MOMENTUM=0",
        "TRAIN.WEIGHT_DECAY=0.1",
        "TRAIN.LR_MULT=1",
        "TRAIN.IMG_MODE=BGR",
        "TRAIN.BN_POLICY=frozen_affine",
        "TRAIN.OUTPUT_STRIDE=16",
        "TRAIN.APPLY_SPAGG=False",
        "TRAIN.SPAGG_ALPHA=0.1",
        "TRAIN.LSR_THRES=1",
        "TRAIN.CONSISTENCY_THRESHOLD=0",
        "TRAIN.CONTRASTIVE_START=1",
        "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=False",
        "DATA_TRANSFORM.FLIP=0",
        "DATA_TRANSFORM.COLOR_JITTER=0",
        "DATA_TRANSFORM.CROPSIZE=48",
        "DATA_TRANSFORM.LOADSIZE=90",
    ],
)
def test_every_option_of_training_reaches_the_network(tiny_cfg, plain_run, option):
    small = ["TRAIN.INPUT_SIZE_SOURCE=[128, 64]", "TRAIN.INPUT_SIZE_TARGET=[64, 64]"]  # read without crops only
    stop = [] if option.startswith("TRAIN.MAX_ITERS") else ["TRAIN.EARLY_STOP=2"]
    assert same(plain_run, trained(*ADAPTED, *small, *stop, option)) == (option == "EXP_NAME=same")


@pytest.mark.parametrize("loader", [source_loader, target_loader])
def test_the_seed_decides_the_batches_of_either_domain(tiny_cfg, loader):
    cfg_from_list(ADAPTED)
    batches = []
    for seed in (1, 1, 2):
        cfg_from_list([f"TRAIN.RANDOM_SEED={seed}"])
        batches.append(torch.cat([batch.image for batch in loader(cfg, TORCHVISION_RGB, 3)]))
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
