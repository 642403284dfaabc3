"""What the scripts share: flags, and one message for every error that a user can mend."""

import argparse
import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_options

from dada.cli import parser_of, shared
from dada.cli.shared import add_cfg_flags, add_device_flag, add_set_flag, load_cfg, print_what_can_be_printed, reporting_errors
from dada.config import ConfigError, cfg, cfg_from_list
from dada.dataset.parallel_map import parallel_map
from dada.runs import run_of
from dada.training.loop import train
from dada.training.trainer import NonFiniteLoss


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_cfg_flags(parser)
    return parser.parse_args(flags)


def fails(error: BaseException):
    def main():
        raise error

    return main


def message(main) -> str:
    """What the script prints before it exits with 1: sys.exit(text) does both."""
    with pytest.raises(SystemExit) as exit_:
        reporting_errors(main)
    assert isinstance(exit_.value.code, str)
    return exit_.value.code


def test_set_may_be_repeated_and_takes_several_pairs():
    load_cfg(parsed("--cfg", "toycity.yml", "--set", "TRAIN.MAX_ITERS=7", "NUM_CLASSES=13", "--set", "EXP_NAME=x"))
    assert (cfg.TRAIN.MAX_ITERS, cfg.NUM_CLASSES, cfg.EXP_NAME) == (7, 13, "x")
    assert cfg.TRAIN.OPTIMIZER == "AdamW"  # of the file


@pytest.mark.parametrize(
    "flags", [["--set", "NUM_CLASSES=13", "--device", "cuda:1"], ["--device", "cuda:1", "--set", "NUM_CLASSES=13"]]
)
def test_a_device_is_an_option_like_those_of_set_in_any_order(flags):
    parser = argparse.ArgumentParser()
    add_cfg_flags(parser)
    add_device_flag(parser)
    load_cfg(parser.parse_args(["--cfg", "toycity.yml", *flags]))
    assert (cfg.DEVICE, cfg.NUM_CLASSES) == ("cuda:1", 13)
    assert parser.parse_args(["--cfg", "toycity.yml"]).set == []


def test_a_device_without_a_set_and_beside_inputs_that_are_mixed_with_flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", nargs="+")
    add_set_flag(parser)
    add_device_flag(parser)
    args = parser.parse_intermixed_args(["a.png", "--device", "cpu", "b.png"])
    assert (args.set, args.inputs) == (["DEVICE=cpu"], ["a.png", "b.png"])


def test_a_device_of_an_unknown_name_is_refused_by_the_parser(capsys):
    parser = argparse.ArgumentParser()
    add_device_flag(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "gpu"])
    assert "argument --device: expected one of 'auto', 'cpu', 'cuda', 'cuda:N', 'mps', got 'gpu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flag", "others"),
    [
        ("export", "--checkpoint", ["--out", "a.onnx"]),
        ("release", "--checkpoint", ["--out", "a.safetensors"]),
        ("explore", "--checkpoint", []),
        ("make-toycity", "--out", []),
        ("predict", "--out", ["photo.png", "--checkpoint", "a.pth"]),
    ],
)
def test_a_flag_of_which_one_counts_is_refused_when_it_is_given_twice(command, flag, others, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser_of(command).parse_intermixed_args([*others, flag, "first.pth", flag, "second.pth"])
    assert exit_.value.code == 2
    assert re.search(
        rf"{flag} is given twice, first.pth and second.pth: give (one|all after one) {flag}", capsys.readouterr().err
    )


def test_flags_that_may_be_repeated_are(capsys):
    args = parser_of("predict").parse_intermixed_args(["--checkpoint", "a", "x.png", "--checkpoint", "b", "--out", "o"])
    assert args.checkpoint == ["a", "b"] and args.inputs == ["x.png"]


@pytest.mark.parametrize("name", ["道路", "Straße → Süd", "🚗"])
@pytest.mark.parametrize(
    ("encoding", "errors"), [("cp1252", "strict"), ("ascii", "surrogateescape")], ids=["Windows", "LC_ALL=C"]
)
def test_what_a_redirected_output_cannot_hold_is_printed_escaped(name, encoding, errors, monkeypatch):
    log = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    monkeypatch.setattr(sys, "stdout", log)
    print_what_can_be_printed()
    print(f"mIoU of {name}: 0.5")
    log.flush()
    text = log.buffer.getvalue().decode(encoding)
    assert text.startswith("mIoU of ") and text.rstrip().endswith(": 0.5")
    assert text.rstrip() == f"mIoU of {name}: 0.5".encode(encoding, "backslashreplace").decode(encoding)


def test_cfg_is_required_and_the_suffix_is_not(capsys):
    assert parsed("--cfg", "a.yml").exp_suffix == ""
    with pytest.raises(SystemExit):
        parsed()
    assert "--cfg" in capsys.readouterr().err


@pytest.fixture
def here_is_the_project(monkeypatch):
    monkeypatch.setattr(shared, "_PROJECT", (shared._PROJECT, str(Path(__file__).parent)))


@pytest.mark.usefixtures("here_is_the_project")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong value"),
        FileNotFoundError("no folder"),
        ConfigError("KEY is not an option"),
        NonFiniteLoss("loss_x = nan"),
        ImportError("no module"),
    ],
)
def test_an_error_of_the_user_is_one_message_without_traceback(error):
    assert message(fails(error)) == f"error: {error}"


@pytest.mark.usefixtures("here_is_the_project")
def test_an_error_without_text_is_named_by_its_kind():
    assert message(fails(ValueError())) == "error: ValueError"


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), AttributeError("x"), AssertionError("x")])
def test_a_defect_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        reporting_errors(fails(error))


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("DADA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong value"):
        reporting_errors(fails(ValueError("wrong value")))


def test_an_interrupt_exits_with_130():
    with pytest.raises(SystemExit) as exit_:
        reporting_errors(fails(KeyboardInterrupt()))
    assert exit_.value.code == 130


def a_product_of_its_own():
    return np.zeros((2, 3)) @ np.zeros((2, 3))


@pytest.mark.parametrize(
    "fails, error", [(a_product_of_its_own, ValueError), (lambda: int("x"), ValueError), (lambda: 1 / 0, ZeroDivisionError)]
)
def test_an_error_in_code_of_ones_own_keeps_its_traceback(fails, error):
    with pytest.raises(error) as raised:
        reporting_errors(fails)
    assert Path(__file__) in [Path(entry.path) for entry in raised.traceback]


def test_an_error_in_a_dataset_of_ones_own_keeps_it_out_of_a_loader_process():
    with pytest.raises(ValueError, match=f'File "{__file__}", line'):
        reporting_errors(lambda: list(parallel_map(lambda _: a_product_of_its_own(), ["x"], num_workers=1)))


def test_a_mistake_that_the_project_finds_in_what_own_code_gives_it_is_one_message():
    assert message(lambda: cfg_from_list(["NO_OPTION=1"])).startswith("error: --set: NO_OPTION is not an option")


@pytest.mark.usefixtures("here_is_the_project")
def test_the_message_of_a_loader_process_is_all_that_is_left_of_its_traceback():
    text = (
        "Caught ValueError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n"
        '  File "fetch.py", line 3, in fetch\n'
        "FileNotFoundError: an earlier one\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        f'  File "{shared.__file__}", line 9, in read\n'
        "ValueError: cannot read a.png: cut short.\n  Unpack it again.\n"
    )
    assert message(fails(ValueError(text))) == "error: cannot read a.png: cut short.\n  Unpack it again."


def label_out_of_range(city):
    from PIL import Image

    for path in (city / "SYNTHIA/parsed_LABELS").iterdir():
        Image.new("L", (128, 64), 99).save(path)
    return r"label id 99 out of range in \S+/parsed_LABELS/\d+.png: 8192 pixels"


def truncated(city):
    for path in (city / "Cityscapes/leftImg8bit/train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:1000])
    return r"cannot read \S+_leftImg8bit.png \(1000 bytes\)"


def image_without_label(city):
    (city / "SYNTHIA/parsed_LABELS/0000002.png").unlink()
    return r"1 of 4 labels of SYNTHIA images are missing: \S+0000002.png"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [label_out_of_range, truncated, image_without_label])
def test_damaged_data_is_one_message_from_any_process_and_leaves_nothing(city, tmp_path, damage, workers):
    shutil.copytree(city, tmp_path / "city")
    expected = damage(tmp_path / "city")
    cfg_from_list([*tiny_options(tmp_path / "city", tmp_path / "runs"), "CONTRASTIVE_LEARNING=True", f"NUM_WORKERS={workers}"])
    text = message(lambda: train(cfg, run_of(cfg), tensorboard=True))
    assert re.match(f"error: {expected}", text), text
    assert "Traceback" not in text and "Caught" not in text
    assert not (tmp_path / "runs").exists()
