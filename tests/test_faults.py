"""What goes wrong in the middle of a run: a loss that is not finite, files that cannot be read, too little memory."""

import logging
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny import TinyNetwork, random_batch, same
from torch import nn

from dada import config
from dada.cli.shared import reporting_errors
from dada.commands.replay import replay, report
from dada.config import cfg, cfg_from_dict, cfg_from_list
from dada.dataset import SYNTHIA, Draw, EvalTransform, step_loader
from dada.domain_adaptation import objectives
from dada.normalization import TORCHVISION_RGB
from dada.runs import run_of
from dada.training import bad_files, memory
from dada.training import loop as training_module
from dada.training import trainer as trainer_module
from dada.training.bad_files import BadFiles, TooManyBadFiles
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.memory import OutOfMemory, explain_out_of_memory
from dada.training.post_mortem import read_post_mortem
from dada.training.trainer import NonFiniteLoss, Trainer


class SmallNetwork(TinyNetwork):
    """With batch norm and a dropout, whose draws a replay must repeat."""

    normalization = TORCHVISION_RGB

    def __init__(self, num_classes: int, **heads) -> None:
        super().__init__(num_classes, **heads)
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(6), nn.Dropout(0.2))


@pytest.fixture
def small(tiny_cfg, monkeypatch):
    """The tiny cfg for six iterations of a small network. Returns the run's folder."""
    monkeypatch.setattr(trainer_module, "build_network", lambda cfg, **_: SmallNetwork(cfg.NUM_CLASSES))
    cfg_from_list(["TRAIN.MAX_ITERS=6", "TRAIN.CHECKPOINT_EVERY=2", "DATA_TRANSFORM.CROPSIZE=32"])
    return run_of(cfg).snapshots


def run(*pairs: str, **options) -> None:
    cfg_from_list(pairs)
    train(cfg, run_of(cfg), **options)


def state_of(folder: Path, iteration: int = 6) -> dict:
    content = read_checkpoint(folder / f"checkpoint_{iteration}.pth")
    return {key: content[key] for key in ("state_dict", "optimizers", "rng", "bad_files")}


# --- a loss that is not finite -------------------------------------------------------------------------------


@pytest.fixture
def explodes(small, monkeypatch):
    """The run's weights are spoilt after iteration 2: `head_main.bias` holds infinity. Returns the run's folder."""
    original = Trainer.iterate

    def iterate(self, iteration, batches):
        result = original(self, iteration, batches)
        if iteration == 2:
            self.network.head_main.bias.data[3] = math.inf
        return result

    monkeypatch.setattr(Trainer, "iterate", iterate)
    return small


def test_a_step_that_is_not_finite_is_saved_and_can_be_computed_again(explodes):
    with pytest.raises(NonFiniteLoss) as error:
        run("TRAIN.DA_METHOD=MinEnt", "TRAIN.ITER_SIZE=2", "TRAIN.BF16=True")
    path = explodes / "post_mortem_3.pth"
    text = str(error.value)
    assert text.startswith("iteration 3: loss_seg_src_main = nan") and "nothing was updated" in text
    assert text.endswith(f"dada replay {path}")
    assert {p.name for p in explodes.iterdir()} == {"train_cfg.yml", "checkpoint_2.pth", path.name}

    content = read_post_mortem(path)
    assert content["iter"] == 3 and set(content["values"]) == {"loss_seg_src_main", "loss_ent_main"}
    assert content["source"].image.shape == (2, 3, 32, 32) and content["target"].label is None
    assert all(name in text for name in content["source"].name + content["target"].name)
    config.reset()
    cfg_from_dict(content["cfg"], "post-mortem")
    torch.manual_seed(99)
    result = replay(cfg, content)
    assert result.reproduced and result.exact
    assert result.module == "network head_main (Conv2d), on source image"
    assert result.weights == ["network head_main.bias"] and result.inputs == []
    assert result.largest == ("network head_main.bias", math.inf)
    assert "network head_main.weight" in result.gradients and result.parameters == 6
    text = report(result)
    assert re.search(r"loss_seg_src_main +nan +nan +not finite", text)
    assert "not finite before the step: network head_main.bias\n" in text
    assert "largest weight before the step: inf, in network head_main.bias\n" in text
    assert text.endswith("the failure is reproduced, to the last bit")


def test_a_loss_of_its_own_making_is_told_from_one_that_a_module_spoils(small, monkeypatch):
    """And the network is as it was before the step: the dropout draws what it drew."""
    seen = []

    def once(step):
        seen.append(step.source_outputs.logits.detach())
        return step.source_logits.mean() * math.inf

    monkeypatch.setitem(objectives.METHODS, "MinEnt", lambda cfg, device: [objectives.Term("loss_bad", 1.0, once)])
    with pytest.raises(NonFiniteLoss, match="loss_bad = -?inf"):
        run("TRAIN.DA_METHOD=MinEnt")
    content = read_post_mortem(small / "post_mortem_0.pth")  # in the first iteration too, when nothing else is there
    result = replay(cfg, content)
    assert torch.equal(*seen)
    assert result.module is None and "of any module: it is in the loss itself" in report(result)
    assert result.exact and math.isfinite(result.now["loss_seg_src_main"])

    content["values"]["loss_seg_src_main"] = 1.0
    assert "in other last bits" in report(replay(cfg, content))
    monkeypatch.setitem(objectives.METHODS, "MinEnt", lambda cfg, device: [])
    assert report(replay(cfg, content)).endswith("the failure is NOT reproduced")


def test_an_image_that_is_not_finite_and_a_discriminator_are_named(small):
    cfg_from_list(["TRAIN.DA_METHOD=AdvEnt"])
    trainer = trainer_module.build_trainer(cfg, torch.device("cpu"))
    (adversary,) = trainer.objective.adversaries
    source, target = (random_batch(1, (32, 32), 16, seed=k)._replace(view=None) for k in (1, 2))
    with torch.no_grad():
        adversary.discriminator[8].bias.fill_(math.nan)
    target.image[0, 0, 5, 5] = math.nan
    with pytest.raises(NonFiniteLoss) as error:
        trainer.iterate(0, iter([(source, target)]))
    path = training_module.save_post_mortem(small, error.value.failed, trainer.network, [adversary.discriminator], {})
    result = replay(cfg, read_post_mortem(path))
    assert result.inputs == ["target image"] and result.weights == ["discriminator main 8.bias"]
    assert result.module == "network stem.0 (Conv2d), on target image"
    assert "loss_d_src_main" in result.now and "loss_d_src_main" not in result.before  # the run did not come to it
    assert "discriminator main 0.weight" in result.gradients and result.reproduced


def test_the_error_is_told_even_if_the_step_cannot_be_saved(explodes, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(training_module, "save_post_mortem", full)
    with pytest.raises(NonFiniteLoss, match=r"loss_seg_src_main = nan(.|\n)*could not be saved: no space left"):
        run()


def test_weights_that_are_not_finite_are_never_saved(explodes):
    """They are what a gradient leaves that is not finite though all losses were."""
    with pytest.raises(NonFiniteLoss, match="1 of the weights .* after iteration 2, head_main.bias among them"):
        run("TRAIN.CHECKPOINT_EVERY=1", "TRAIN.KEEP_CHECKPOINTS=9")
    assert {p.name for p in explodes.glob("*.pth")} == {"checkpoint_1.pth", "checkpoint_2.pth"}


def test_a_post_mortem_goes_with_the_run_that_wrote_it(explodes, monkeypatch):
    with pytest.raises(NonFiniteLoss):
        run()
    monkeypatch.undo()
    monkeypatch.setattr(trainer_module, "build_network", lambda cfg, **_: SmallNetwork(cfg.NUM_CLASSES))
    run("TRAIN.EARLY_STOP=1")
    assert (explodes / "former_1" / "post_mortem_3.pth").exists() and not (explodes / "post_mortem_3.pth").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is damaged"),
        (b"PK\x03\x04 no archive", "is damaged"),
        (None, "does not exist; expected a"),
        ({"format": 1, "iter": 3}, "lacks cfg, device, .*: it is not a post-mortem"),
        ([1], "lacks .*: it is not a post-mortem"),
    ],
)
def test_a_file_that_is_no_post_mortem_is_refused(tmp_path, content, message):
    path = tmp_path / "post_mortem_3.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{path} {message}"):
        read_post_mortem(path)


def test_the_script_tells_by_its_exit_code_whether_the_failure_is_reproduced(explodes, capsys, run_script):
    with pytest.raises(NonFiniteLoss):
        run()
    path = explodes / "post_mortem_3.pth"

    def script(*arguments: str) -> tuple[int, str]:
        code = 0
        try:
            run_script("replay.py", *arguments)
        except SystemExit as exit_:
            code = exit_.code
        return code, capsys.readouterr().out

    capsys.readouterr()
    code, text = script(str(path))
    assert code == 0 and text.startswith("iteration 3 on cpu, dada ") and "source images: 0000" in text
    *_, said, following = text.splitlines()
    assert said == "the failure is reproduced, to the last bit"
    assert re.fullmatch(rf"next: python .*train.py --cfg {explodes}/train_cfg.yml .*TRAIN.LEARNING_RATE=\S+", following)
    code, _ = script(str(path), "--set", "NUM_CLASSES=13")
    assert code.startswith("error: the weights of the post-mortem do not fit the network of this configuration")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["head_main.bias"].zero_()
    torch.save(content, path)
    code, text = script(str(path))
    assert code == 2 and text.endswith("the failure is NOT reproduced\n")


# --- files that cannot be read -------------------------------------------------------------------------------

PLAIN = EvalTransform(TORCHVISION_RGB, size=(128, 64))


@pytest.fixture
def damaged(small, city, tmp_path):
    """The run reads a copy of the city: source image 1 is cut short, source label 3 no picture. Returns their paths."""
    root = tmp_path / "city" / "SYNTHIA"
    shutil.copytree(city, root.parent)
    image, label = root / "RGB" / "0000001.png", root / "parsed_LABELS" / "0000003.png"
    image.write_bytes(image.read_bytes()[:300])
    label.write_text("no picture")
    cfg_from_list([f"DATA_DIRECTORY_SOURCE={root}", "DATA_TRANSFORM.COLOR_JITTER=0.2"])
    return image, label


def damaged_dataset(folder: Path) -> SYNTHIA:
    dataset = SYNTHIA(folder.parent.parent, num_classes=16, transform=PLAIN)
    dataset.skip_bad_files = True
    return dataset


def test_a_run_skips_bad_files_if_it_is_told_to_whatever_loads_and_interrupts_it(small, damaged, caplog):
    run("ON_BAD_FILE=skip", "EXP_NAME=whole")
    whole = state_of(run_of(cfg).snapshots)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    named = [text for text in warnings if text.startswith("skipped, here and wherever it comes again: cannot read ")]
    assert len(named) == 2 and {str(p) for p in damaged} == {re.search(r"read (\S+)", text)[1] for text in named}
    total = sum(whole["bad_files"]["times"].values())
    assert 6 <= total <= 10 and whole["bad_files"]["draws"] == 12  # three epochs of four, two of them bad
    assert warnings[-1].startswith(f"{total} of 12 draws ({total / 12:.2%}) met a sample that cannot be read")
    assert warnings[-1].endswith("such samples: 2")

    run("NUM_WORKERS=2", "EXP_NAME=workers")
    assert same(state_of(run_of(cfg).snapshots), whole)

    run("NUM_WORKERS=0", "EXP_NAME=tiny", "TRAIN.EARLY_STOP=2")
    caplog.clear()
    run("TRAIN.EARLY_STOP=0", resume="auto")
    assert same(state_of(small), whole)
    assert "skipped" not in caplog.text  # each is named once a run


def test_a_run_that_a_bad_file_has_ended_goes_on_as_if_it_had_skipped_from_the_start(small, damaged):
    image, label = damaged
    shutil.copy(label.with_name("0000000.png"), label)
    run("ON_BAD_FILE=skip", "EXP_NAME=whole", "TRAIN.BATCH_SIZE_SOURCE=1", "TRAIN.CHECKPOINT_EVERY=1")
    whole = state_of(run_of(cfg).snapshots)
    with pytest.raises(ValueError, match=rf"cannot read {image} \(300 bytes\)"):
        run("ON_BAD_FILE=fail", "EXP_NAME=tiny")
    assert list(small.glob("checkpoint_*"))
    run("ON_BAD_FILE=skip", resume="auto")
    assert same(state_of(small), whole)


def test_what_takes_the_place_of_a_bad_sample_depends_on_seed_step_and_slot(damaged):
    dataset = damaged_dataset(damaged[0])
    draws = [Draw(1, step, slot) for step in range(6) for slot in range(2)]
    names = [dataset[draw].name for draw in draws]
    assert names == [damaged_dataset(damaged[0])[draw].name for draw in draws]
    assert set(names) == {"0000000.png", "0000002.png"}
    dataset.seed = 5
    assert names != [dataset[draw].name for draw in draws]
    sample = dataset[draws[0]]
    assert sample.skipped[0][0] == str(damaged[0]) and sample.skipped[0][1].startswith(f"cannot read {damaged[0]} ")
    assert dataset[Draw(0, 0, 0)].skipped == ()
    (batch,) = step_loader(dataset, 4, seed=0, stop_step=1, num_workers=1)
    assert {Path(name).name for name, _ in batch.skipped} >= {"0000001.png", "0000003.png"}


def test_a_sample_asked_for_by_its_index_is_never_replaced(damaged):
    dataset = damaged_dataset(damaged[0])
    with pytest.raises(ValueError, match="cannot read"):
        dataset[1]
    dataset.skip_bad_files = False
    with pytest.raises(ValueError, match="cannot read"):
        dataset[Draw(3, 0, 0)]


def test_an_error_of_the_transform_is_no_bad_file(damaged):
    def broken(*_):
        raise ValueError("crop larger than image")

    dataset = damaged_dataset(damaged[0])
    dataset.transform = broken
    with pytest.raises(ValueError, match="crop larger"):
        dataset[Draw(0, 0, 0)]


def test_a_data_set_that_cannot_be_read_at_all_ends_the_run(small, damaged):
    for path in damaged[0].parent.iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"10 samples of SYNTHIA in a row, each drawn to replace the last(.|\n)*The last error: cannot read"
    ):
        run("ON_BAD_FILE=skip")
    assert not small.exists()


def test_more_bad_draws_than_a_hundredth_end_the_run(monkeypatch, small, damaged):
    monkeypatch.setattr(bad_files, "FIRST_FREE", 2)
    with pytest.raises(TooManyBadFiles, match=r"3 of \d draws \(\d+\.\d\d%\) (.|\n)*up to 1% \(and 2 draws\)(.|\n)*check-data"):
        run("ON_BAD_FILE=skip")
    batch = random_batch()._replace(skipped=(("a.png", "reason"),))
    counts = BadFiles({"draws": 98, "times": {"a.png": 2}})
    list(counts.counted([(batch, None)]))  # 3 of 100
    with pytest.raises(TooManyBadFiles):
        list(counts.counted([(batch, batch)]))
    assert counts.state() == {"draws": 102, "times": {"a.png": 4}}
    long = BadFiles({"draws": 10_000, "times": {"a.png": 99}})
    list(long.counted([(batch, None)]))


# --- too little memory ---------------------------------------------------------------------------------------


def message_of(error: BaseException) -> str:
    with pytest.raises(OutOfMemory) as raised, explain_out_of_memory(cfg):
        raise error
    return str(raised.value)


@pytest.mark.parametrize(
    "error, asked",
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "2.00 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes. Error"), "8 GB"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "7.45 GiB"),
        (MemoryError(), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), None),
    ],
)
def test_every_way_to_run_out_of_memory_is_one_message(error, asked):
    text = message_of(error)
    assert text.startswith("out of memory on ") and (asked is None) == ("were asked for" not in text)
    assert asked is None or f"; {asked} more were asked for" in text


def test_the_message_lists_what_to_lower_with_the_figures_of_the_run(monkeypatch):
    monkeypatch.setattr(memory, "_host_total", lambda: 8_000_000_000)
    cfg_from_list(["TRAIN.BATCH_SIZE_SOURCE=4", "TRAIN.BATCH_SIZE_TARGET=2", "TRAIN.ITER_SIZE=3", "TRAIN.BF16=True", "GPU_ID=-1"])
    text = message_of(MemoryError())
    assert re.match(r"out of memory on the host \(8\.0 GB, this process used up to \d+\.\d GB\)\.\n", text)
    assert "4 source and 2 target images" in text and "DeepLabv2 computes" in text
    assert [line.split(":")[0] for line in text.splitlines()[2:-1]] == [
        "  TRAIN.RECOMPUTE=True (now False)",
        "  TRAIN.BATCH_SIZE_SOURCE=2 TRAIN.BATCH_SIZE_TARGET=1 TRAIN.ITER_SIZE=6 (now 4, 2, 3)",
        "  TRAIN.INPUT_SIZE_SOURCE, TRAIN.INPUT_SIZE_TARGET (now 1280x760 and 1024x512)",
        "  TRAIN.MODEL (now DeepLabv2)",
    ]
    cfg_from_list(
        [
            "TRAIN.BATCH_SIZE_SOURCE=3",
            "TRAIN.BF16=False",
            "TRAIN.MODEL=timm:convnext_tiny",
            "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True",
        ]
    )
    assert [line.split(":")[0] for line in message_of(MemoryError()).splitlines()[2:-1]] == [
        "  TRAIN.RECOMPUTE=True (now False)",
        "  TRAIN.BF16=True (now False)",
        "  TRAIN.BATCH_SIZE_SOURCE, TRAIN.BATCH_SIZE_TARGET (now 3, 2); a larger TRAIN.ITER_SIZE (now 3) makes up for it",
        "  DATA_TRANSFORM.CROPSIZE (now 730)",
        "  TRAIN.OUTPUT_STRIDE=16 (now 8)",
        "  TRAIN.MODEL (now timm",
    ]
    cfg_from_list(["TRAIN.MODEL=timm:tf_efficientnet_lite0"])
    assert "RECOMPUTE" not in message_of(MemoryError())
    cfg_from_list(["TRAIN.MODEL=timm:vit_small_patch14_dinov2"])
    assert "RECOMPUTE" in message_of(MemoryError()) and "OUTPUT_STRIDE" not in message_of(MemoryError())


def test_the_advice_on_batches_keeps_the_images_of_an_update():
    cfg_from_list(["TRAIN.BATCH_SIZE_SOURCE=6", "TRAIN.BATCH_SIZE_TARGET=9", "TRAIN.ITER_SIZE=2"])
    assert "TRAIN.BATCH_SIZE_SOURCE=2 TRAIN.BATCH_SIZE_TARGET=3 TRAIN.ITER_SIZE=6 (now 6, 9, 2)" in message_of(MemoryError())


def test_a_loader_process_without_memory_is_another_matter():
    message = message_of(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert "the system ended it" in message
    assert message.endswith("  NUM_WORKERS (now 4 for each domain); 0 loads in the training process")


def test_other_errors_of_a_block_are_left_alone():
    with pytest.raises(RuntimeError, match="^mat1 and mat2$"), explain_out_of_memory(cfg):
        raise RuntimeError("mat1 and mat2")


def test_a_run_out_of_memory_is_an_error_of_the_user_and_leaves_what_it_has_saved(small, monkeypatch):
    original = Trainer.iterate

    def iterate(self, iteration, batches):
        if iteration == 3:
            torch.empty(10**15)
        return original(self, iteration, batches)

    monkeypatch.setattr(Trainer, "iterate", iterate)
    with pytest.raises(SystemExit) as exit_:
        reporting_errors(run)
    assert exit_.value.code.startswith("error: out of memory on the host (") and "4e+06 GB more were asked" in exit_.value.code
    assert {p.name for p in small.iterdir()} == {"train_cfg.yml", "checkpoint_2.pth"}
