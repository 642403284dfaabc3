"""What commands share: flags, the cfg made from them, and one clear message for each error of a user."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from easydict import EasyDict

from dada.config import ConfigError, cfg, cfg_from_dict, cfg_from_file, cfg_from_list, flat_options, several_values

# Errors that a user can mend. Anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ArithmeticError, ImportError)
_PROJECT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_DEVICE = flat_options()["DEVICE"]


class Parser(argparse.ArgumentParser):
    """Refuses a second --checkpoint or --out; argparse would silently take the last.

    Other flags may be repeated: the last one counts, so that it overrides that of a script.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)


class _StoreOnce(argparse._StoreAction):
    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest, self.default)
        if self.dest in ("checkpoint", "out") and before is not self.default:
            parser.error(f"{option_string} is given twice, {before} and {values}: give one {option_string}")
        super().__call__(parser, namespace, values, option_string)


def print_what_can_be_printed() -> None:
    """Have what the encoding of the output lacks, as that of a redirected log on Windows may, printed as \\uXXXX."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def add_cfg_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--cfg, --set and --exp-suffix, as ADVENT's and DADA's scripts have them."""
    parser.add_argument(
        "--cfg",
        nargs="+",
        action="extend",
        required=required,
        metavar="FILE",
        help="YAML files, each a path or a name in configs/, or snapshots, for the cfg in them; a later one overrides "
        "what an earlier one set",
    )
    add_set_flag(parser)
    parser.add_argument("--exp-suffix", default="", help="appended to EXP_NAME with an underscore")


def add_set_flag(parser: argparse.ArgumentParser, meaning: str = "override options of the cfg") -> None:
    """--set, which may be given more than once: all pairs count."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=meaning)


def add_network_flags(parser: argparse.ArgumentParser, meaning: str = "override options of the cfg", device: bool = True) -> None:
    """--cfg, --set and --device of a command that takes a checkpoint."""
    parser.add_argument("--cfg", nargs="+", metavar="FILE", help="what describes published weights, as in test")
    add_set_flag(parser, meaning)
    if device:
        add_device_flag(parser)


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """--device: one more option among those that --set gives."""
    parser.add_argument(
        "--device",
        action=_AddDevice,
        dest="set",
        default=argparse.SUPPRESS,
        type=_device_name,
        metavar="|".join(_DEVICE.choices),
        help="where networks run: the GPU if there is one (auto), the CPU, a GPU, that of number N, Apple's, untested (mps); "
        "short for the option DEVICE (auto)",
    )


def cfg_flags(args: argparse.Namespace) -> list[str]:
    """The flags of `add_cfg_flags` as they were given, for the command that comes next."""
    return [*network_flags(args), *(["--exp-suffix", args.exp_suffix] if args.exp_suffix else [])]


def network_flags(args: argparse.Namespace) -> list[str]:
    """--cfg and --set as they were given to a command that takes a checkpoint, for the command that comes next."""
    return [*(["--cfg", *args.cfg] if args.cfg else []), *(["--set", *args.set] if args.set else [])]


def release_of(checkpoint: str | Path, flags: Sequence[str] = ()) -> list[object]:
    """The command that makes a release of a checkpoint, or exports one that is a release already."""
    command, ending = ("export", ".onnx") if str(checkpoint).endswith(".safetensors") else ("release", ".safetensors")
    return [command, "--checkpoint", checkpoint, *flags, "--out", Path(checkpoint).with_suffix(ending)]


def one_or_list(values: Sequence[object]) -> str:
    """The value of an option as --set takes it: that of one dataset, or a list with that of each."""
    return str(values[0]) if len(values) == 1 else json.dumps([str(value) for value in values], ensure_ascii=False)


def photographs(folder: str) -> list[str]:
    """`KEY=value` pairs over the cfg that make the pictures in a folder, and in any folders below, the target.

    Those in its folder `masks` are the labels of the others, as train ids: masks/a/b.png is that of a/b.jpg.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--images {folder} is not a folder; give the one that the photographs lie in")
    of_several = [f"{name}={flat_options()[name].default}" for name in several_values(cfg, "target")]
    options = [*of_several, "TARGET=Folder", f"DATA_DIRECTORY_TARGET={folder}", "DATA_LIST_TARGET="]
    files = ["FOLDER_TARGET.IMAGES=**/*.*", "FOLDER_TARGET.LABELS=masks/**/*.*"]
    return [*options, *files, "FOLDER_TARGET.LABEL_FORMAT=ids", "FOLDER_TARGET.LABEL_MAP={}"]


class _AddDevice(argparse.Action):
    def __call__(self, parser, namespace, value, option_string=None):
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), f"DEVICE={value}"])


def _device_name(text: str) -> str:
    try:
        return _DEVICE.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_cfg(args: argparse.Namespace, otherwise: Sequence[str] = ()) -> EasyDict:
    """Fill the global cfg from the flags of `add_cfg_flags`, and return it; without --cfg from the files `otherwise`."""
    for name in args.cfg or otherwise:
        if name.endswith((".pth", ".safetensors")):
            _cfg_from_weights(name)
        else:
            cfg_from_file(name)
    return cfg_from_list(args.set)


def _cfg_from_weights(path: str) -> None:
    from dada.model.weight_files import read_weights  # torch takes a second to import

    stored = read_weights(path).cfg
    if not stored:
        raise ConfigError(f"{path} holds weights without a configuration; give a YAML file that describes its network")
    cfg_from_dict(stored, path)


def reporting_errors(main: Callable[[], None]) -> None:
    """Run `main`; report a user's error as one message and exit with 1. DADA_TRACEBACK=1 shows where it arose.

    An error raised by the user's own code keeps its traceback, which shows where that code is wrong.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except USER_ERRORS as error:
        if os.environ.get("DADA_TRACEBACK") or _is_of_own_code(error):
            raise
        sys.exit(f"error: {_message(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


def _is_of_own_code(error: BaseException) -> bool:
    """Whether what raised it, or called the library that did, is neither Python's, nor a package's, nor this project's."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if str(error).startswith("Caught "):  # the traceback of a loader process
        files += re.findall(r'^ +File "(.+)", line \d+', str(error), flags=re.MULTILINE)
    libraries = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    for file in reversed(files):
        if file.startswith(_PROJECT):
            return False
        if not file.startswith(("<", *libraries)):
            return True
    return False


def _message(error: BaseException) -> str:
    # A loader process hands over its whole traceback as the text of the error; the message is what follows the last
    # "SomeError: " at the start of a line.
    text = str(error)
    if text.startswith("Caught "):
        text = re.split(r"^\w[\w.]*(?:Error|Exception|Loss): ", text, flags=re.MULTILINE)[-1].rstrip()
    return text or type(error).__name__


def print_facts(facts: Mapping[str, object]) -> None:
    """One line each but for the model card; long values, such as a palette or a whole configuration, are cut."""
    for key, value in facts.items():
        if key != "model_card":
            print(shorten(f"{key}: {value}", 120, placeholder=" …"))
