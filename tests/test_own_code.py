"""IMPORTS: code of a user's own is imported where the user names it, kept with the run, and never because a file asks for it."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_options

from dada import config
from dada.config import ConfigError, cfg, cfg_from_dict, cfg_from_file, cfg_from_list, default_cfg, imports, plain_cfg
from dada.domain_adaptation.objectives import METHODS
from dada.model import MODELS
from dada.model.weight_files import read_weights
from dada.publishing.release_file import write_release
from dada.runs import run_of
from dada.segmenter import Segmenter
from dada.training.loop import train

METHOD = """
from dada.domain_adaptation.objectives import METHODS, Term

FACTOR = {factor}


def brightness(step):
    return FACTOR * step.target_outputs.logits.square().mean()


METHODS["Brightness"] = lambda cfg, device: [Term("loss_brightness", 1.0, brightness)]
"""
NETWORK = """
from dada.model import MODELS
from dada.model.deeplabv2 import undilated_resnet18

MODELS["my-network"] = undilated_resnet18
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What a test imports is gone afterwards."""
    monkeypatch.setattr(imports, "_sources", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, registries = set(sys.modules), [(r, dict(r)) for r in (METHODS, MODELS)]
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]
    for registry, entries in registries:
        registry.clear()
        registry.update(entries)


def forget() -> None:
    """What was imported, as a new process has."""
    for name in imports._sources:
        sys.path.remove(str(Path(sys.modules.pop(Path(name).stem).__file__).parent))
    imports._sources.clear()
    METHODS.pop("Brightness", None), MODELS.pop("my-network", None)
    config.reset()


@pytest.fixture(scope="module")
def trained_once(city, tmp_path_factory) -> Path:
    """A folder with an experiment and its code, and a run of it."""
    folder = tmp_path_factory.mktemp("own") / "project"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "my_method.py").write_text(METHOD.format(factor=1))
    (folder / "mine.yml").write_text(
        "IMPORTS: [code/my_method.py]\nTRAIN: {DA_METHOD: Brightness, MAX_ITERS: 2, SAVE_PRED_EVERY: 1}\n"
    )
    cfg = cfg_from_file(folder / "mine.yml", cfg_from_list(tiny_options(city, folder / "runs"), default_cfg()))
    cfg.CONTRASTIVE_LEARNING = False
    train(cfg, run_of(cfg))
    forget()
    return folder


@pytest.fixture
def project(trained_once, tmp_path) -> Path:
    """A copy of that folder, on a machine that has imported nothing."""
    return shutil.copytree(trained_once, tmp_path / "project")


@pytest.fixture
def snapshots(project, monkeypatch) -> Path:
    """Those of the run; the working directory is that of the code."""
    monkeypatch.chdir(project / "code")
    return project / "runs" / "snapshots" / "tiny"


def test_a_yaml_file_imports_from_its_own_folder_and_the_run_keeps_a_copy(project, snapshots):
    source = (project / "code" / "my_method.py").read_bytes()
    assert (snapshots / "my_method.py").read_bytes() == source
    saved = torch.load(snapshots / "model_2.pth", weights_only=True)
    assert list(saved["cfg"]["IMPORTS"]) == ["my_method.py"], "the name, no folder of this machine"
    checkpoint = torch.load(snapshots / "checkpoint_2.pth", weights_only=True)
    assert checkpoint["data"]["IMPORTS my_method.py"] == hashlib.sha256(source).hexdigest()

    cfg_from_file(snapshots / "train_cfg.yml")  # it names the copy beside it
    assert cfg.TRAIN.DA_METHOD == "Brightness" and Path(sys.modules["my_method"].__file__).parent == snapshots.resolve()
    cfg_from_list([f"EXP_ROOT={project / 'runs'}", "TRAIN.MAX_ITERS=1"])
    train(cfg, run_of(cfg))  # a new run in the same folder: the code that it began with is set aside, and is there
    assert (snapshots / "former_1" / "my_method.py").read_bytes() == source
    assert (snapshots / "my_method.py").read_bytes() == source


def test_a_run_does_not_go_on_with_other_code(project, snapshots):
    (project / "code" / "my_method.py").write_text(METHOD.format(factor=2))
    (snapshots / "checkpoint_2.pth").unlink()
    cfg_from_dict(yaml.safe_load((snapshots / "train_cfg.yml").read_text()), "train_cfg.yml")
    cfg_from_list(["IMPORTS=[my_method.py]", f"EXP_ROOT={project / 'runs'}"])
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint_1.pth, since .* changed:\n  IMPORTS my_method.py: "):
        train(cfg, run_of(cfg), resume="auto")


def test_a_snapshot_or_a_release_imports_nothing_and_says_what_to_name(project, snapshots, caplog):
    """Its code lies right beside it, and in the working directory."""
    snapshot, out = snapshots / "model_2.pth", snapshots / "model.safetensors"
    cfg_from_dict(read_weights(snapshot).cfg, "model_2.pth")
    write_release(cfg, snapshot, out)
    assert "Trained with code of its own | my_method.py" in out.with_suffix(".md").read_text()
    for file in (snapshot, out):
        caplog.clear()
        Segmenter.from_checkpoint(file, device="cpu")  # the network is none of that code's: it can be used
        assert "IMPORTS ['my_method.py']" in caplog.text and "--set IMPORTS='[FOLDER/NAME.py]'" in caplog.text
    with pytest.raises(ValueError, match=r"only you can ask for that: IMPORTS \['my_method.py'\]"):
        train(cfg, run_of(cfg, "again"))
    assert "my_method" not in sys.modules and "Brightness" not in METHODS


def test_a_network_of_ones_own_is_asked_for_by_file(tiny_cfg, tmp_path):
    (tmp_path / "my_network.py").write_text(NETWORK)
    cfg_from_list(
        [f"IMPORTS=[{tmp_path / 'my_network.py'}]", "TRAIN.MODEL=my-network", "CONTRASTIVE_LEARNING=False", "TRAIN.MAX_ITERS=1"]
    )
    run = run_of(cfg)
    train(cfg, run)
    forget()
    with pytest.raises(ValueError, match=r"unknown network 'my-network'.*IMPORTS \['my_network.py'\]"):
        Segmenter.from_checkpoint(run.snapshots / "model_1.pth", device="cpu")
    options = [f"IMPORTS=[{run.snapshots / 'my_network.py'}]"]
    assert Segmenter.from_checkpoint(run.snapshots / "model_1.pth", device="cpu", options=options).names[0] == "road"


def test_a_dataset_of_ones_own_is_asked_for_by_file(tiny_cfg):
    cfg_from_dict({"IMPORTS": ["my_data.py"], "TARGET": "Mine"}, "model.pth")
    from dada.build import target_loader
    from dada.normalization import TORCHVISION_RGB

    with pytest.raises(ValueError, match=r"TARGET is 'Mine'.*IMPORTS \['my_data.py'\]"):
        target_loader(cfg, TORCHVISION_RGB, steps=1)


def test_files_of_several_yaml_files_add_up_and_an_empty_list_names_none(project, tmp_path):
    (project / "my_network.py").write_text(NETWORK)
    (project / "network.yml").write_text("IMPORTS: [my_network.py]")
    cfg_from_file(project / "network.yml")
    cfg_from_file(project / "mine.yml")
    cfg_from_file(project / "mine.yml")
    assert cfg.IMPORTS == ("my_network.py", "my_method.py") and {"Brightness"} <= set(METHODS) and "my-network" in MODELS
    cfg_from_list(["IMPORTS=[]"])
    assert cfg.IMPORTS == () and plain_cfg(cfg)["IMPORTS"] == []


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("my_typo.py", "import torch\n\nx = undefined\n", "my_typo.py, line 3: NameError: name 'undefined' is not defined"),
        ("my_syntax.py", "def f(:\n", r"my_syntax.py: SyntaxError: invalid syntax \(my_syntax.py, line 1\)"),
        ("random.py", "", "there is another module called random; rename .*random.py"),
        ("my-loss.py", "", "my-loss.py has no name that Python can import"),
        ("my_loss.txt", "", "my_loss.txt has no name that Python can import"),
        ("my_gone.py", None, "my_gone.py does not exist; paths are relative to the YAML file"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_reason(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    (tmp_path / "cfg.yml").write_text(f"IMPORTS: [{name}]")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cfg_from_file(tmp_path / "cfg.yml")
    assert cfg.IMPORTS == ()


def test_two_files_of_one_name_are_refused_unless_they_are_the_same(tmp_path):
    for folder, text in (("a", "X = 1"), ("b", "X = 1"), ("c", "X = 2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_file.py").write_text(text)
    cfg_from_list([f"IMPORTS=[{tmp_path}/a/my_file.py, {tmp_path}/b/my_file.py]"])
    assert cfg.IMPORTS == ("my_file.py",)
    with pytest.raises(ValueError, match="has imported another my_file.py than .*/c/my_file.py; rename one"):
        cfg_from_list([f"IMPORTS=[{tmp_path}/c/my_file.py]"])


def test_a_mistake_in_the_yaml_file_imports_nothing(project):
    (project / "mine.yml").write_text("IMPORTS: [code/my_method.py]\nNO_OPTION: 1\n")
    with pytest.raises(ConfigError, match="NO_OPTION is not an option"):
        cfg_from_file(project / "mine.yml")
    assert "my_method" not in sys.modules
