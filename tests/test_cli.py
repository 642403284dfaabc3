"""The command `dada`: its commands have their flags at hand without torch, and a wheel has all that they read."""

import argparse
import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pages import PAGES, ROOT

import dada
from dada import cli
from dada.commands import bench_methods
from dada.evaluation.criteria import Criteria
from dada.evaluation.criterion_names import CLOSURE, MEANINGS

HEAVY = ("torch", "numpy", "matplotlib", "PIL", "cv2", "timm")
NO_NETWORK = {
    "check-data",
    "config-reference",
    "make-toycity",
    "pack-dataset",
    "release",  # copies weights
    "export",  # other programs run what it writes; it compares their results with those of a CPU
}


def python(*arguments: str, cwd: Path = ROOT, path: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags_of(command: str) -> list[dict[str, argparse.Action]]:
    """The flags of a command; of one with kinds of its own, those of every kind."""
    parser = cli.parser_of(command)
    kinds = [p for a in parser._actions if isinstance(a, argparse._SubParsersAction) for p in a.choices.values()]
    return [p._option_string_actions for p in kinds or [parser]]


def test_help_of_every_command_needs_none_of_the_large_packages():
    code = f"""
import contextlib, io, sys
from dada.cli import COMMANDS, main
for command in ((), *((name,) for name in COMMANDS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        main([*command, "--help"])
    assert said.getvalue().startswith("usage: dada"), command
    print("dada", *command, *set({HEAVY}).intersection(sys.modules))
"""
    assert python("-c", code).splitlines() == ["dada", *(f"dada {name}" for name in cli.COMMANDS)]


def test_the_names_that_help_shows_are_those_of_the_code():
    assert tuple(MEANINGS) == (*Criteria._fields, CLOSURE)
    assert not set(bench_methods.METHODS) & set(bench_methods.CANDIDATES)


def test_the_command_alone_shows_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    printed = capsys.readouterr()
    assert ended.value.code == 2 and not printed.out and "usage: dada " in printed.err
    assert all(f"\n  {name} " in printed.err for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_shows_commands_to_type_apart_from_its_text(command):
    lines = cli.parser_of(command).description.splitlines()
    typed = [line for line in lines if re.match(r" *(dada|torchrun) [a-z-]+ ?", line)]
    assert f"dada {command}" in " ".join(typed) and all(line.startswith("    ") for line in typed)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_all_pairs_of_a_repeated_set_count(command):
    for flags in flags_of(command):
        if "--set" in flags:
            parser = argparse.ArgumentParser()
            parser._add_action(flags["--set"])
            assert parser.parse_args(["--set", "A=1", "B=2", "--set", "C=3"]).set == ["A=1", "B=2", "C=3"]
            assert parser.parse_args([]).set == []


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_what_takes_a_configuration_takes_options_and_what_runs_a_network_takes_a_device(command):
    for flags in flags_of(command):
        assert "--set" in flags or not {"--cfg", "--device"} & flags.keys()
    assert any("--device" in flags for flags in flags_of(command)) == (command not in NO_NETWORK)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_ends_with_the_next_one(command):
    """Whether that can be pasted, `run_script` looks at wherever a test runs a command."""
    code = inspect.getsource(importlib.import_module(f"dada.cli.{command.replace('-', '_')}").main)
    (main,) = ast.parse(code).body
    returns = [node.value for node in ast.walk(main) if isinstance(node, ast.Return)]
    assert isinstance(main.body[-1], ast.Return) and all(isinstance(value, ast.expr) for value in returns)
    assert ast.unparse(main.returns) in ("list[str]", "list[object]")


def test_every_command_has_a_script_and_all_scripts_are_alike():
    scripts = {path.stem: path.read_text("utf-8") for path in (ROOT / "scripts").glob("[!_]*.py")}
    assert scripts.keys() == {name.replace("-", "_") for name in cli.COMMANDS}
    for stem, text in scripts.items():
        name = stem.replace("_", "-")
        assert text.startswith(f'"""`dada {name}`'), stem
        assert text.endswith(f'if __name__ == "__main__":\n    main("{name}")\n'), stem


def test_the_package_runs_as_a_module_and_an_unknown_command_is_told_the_others(capsys):
    assert python("-m", "dada", "--version") == f"dada {dada.__version__}\n"
    with pytest.raises(SystemExit):
        cli.main(["trian"])
    assert "invalid choice: 'trian' (choose from" in capsys.readouterr().err


def test_inputs_may_stand_among_flags(tmp_path):
    args = cli.parser_of("predict").parse_intermixed_args(["a.png", "--checkpoint", "x.pth", "b.png", "--out", "o", "c.png"])
    assert args.inputs == ["a.png", "b.png", "c.png"]


def test_the_package_tells_what_there_is_and_imports_it_when_it_is_used():
    assert {"Segmenter", "Prediction", "cycle_association_loss", "find_cycles", "__version__"} <= set(dir(dada))
    assert [getattr(dada, name).__name__ for name in dada.__all__] == dada.__all__
    with pytest.raises(AttributeError, match="module 'dada' has no attribute 'segment'"):
        _ = dada.segment
    assert python("-c", "import dada, sys; dir(dada); print('torch' in sys.modules)") == "False\n"


def test_the_list_of_commands_is_whole_and_commands_named_anywhere_exist():
    texts = {path: path.read_text("utf-8") for path in [*PAGES, *(ROOT / "dada").rglob("*.py")]}
    named = {path.name: set(re.findall(r"`dada ([a-z][a-z-]*)", text)) for path, text in texts.items()}
    assert named["README.md"] == set(cli.COMMANDS)
    assert set().union(*named.values()) == set(cli.COMMANDS)


# ---- a wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves folders where it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("dada", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    python("-c", f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})", cwd=source)
    (path,) = out.iterdir()
    return path


def test_a_wheel_holds_every_file_of_the_package_the_configurations_and_the_command(wheel):
    assert wheel.name == f"dada_seg-{dada.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (entry_points,) = [archive.read(name).decode() for name in inside if name.endswith("/entry_points.txt")]
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "dada").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    configurations = {f"dada/configs/{p.name}" for p in (ROOT / "configs").glob("*.yml")}
    assert {name for name in inside if ".dist-info/" not in name} == package | configurations
    assert {Path(name).suffix for name in package} == {".py", ".typed", ".html", ".css", ".js"}
    assert entry_points.split() == ["[console_scripts]", "dada", "=", "dada.cli:main"]


def test_an_installed_package_finds_its_configurations_and_says_what_needs_a_clone(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "configs").mkdir()  # of another project
    code = "from dada.config import find_config; print(find_config('synthia2cityscapes_dada'))"
    assert Path(python("-c", code, cwd=tmp_path, path=site).strip()) == site / "dada/configs/synthia2cityscapes_dada.yml"
    command = "import sys; from dada.cli import main\ntry: main(['config-reference'])\nexcept SystemExit as end: print(end.code)"
    said = python("-c", command, cwd=tmp_path, path=site)
    assert said == f"error: there is no {site / 'docs/config.md'}: this command is for a clone of the project\n"
