"""Networks written for others as safetensors: what the file says, and that every script reads it back."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from dada import config
from dada.build import build_network
from dada.cli.shared import add_cfg_flags, load_cfg
from dada.config import ConfigError, cfg, cfg_from_list
from dada.evaluation.tester import evaluate_run as run_test
from dada.model import build_model
from dada.model.weight_files import read_weights
from dada.publishing.model_card import model_card
from dada.publishing.release_file import write_release
from dada.runs import file_hash, find_snapshots, run_of
from dada.training.loop import train


@pytest.fixture
def trained(tiny_cfg) -> Path:
    """The snapshot of a run that was trained and tested."""
    cfg_from_list(["TRAIN.HEAD_BIAS=False", "TRAIN.MAX_ITERS=1"])
    run = run_of(cfg)
    train(cfg, run)
    run_test(cfg, run)
    return find_snapshots(run.snapshots)[-1]


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_release_says_what_it_is_and_is_tested_like_its_snapshot(trained, tmp_path, capsys, run_script):
    before = json.loads((trained.parent / f"test_{trained.stem}.json").read_text())
    local, target = str(tmp_path), cfg.DATA_DIRECTORY_TARGET
    out = tmp_path / "model.safetensors"
    run_script("release.py", "--checkpoint", str(trained), "--out", str(out))
    assert f"written: {out}, sha256 {file_hash(out)}" in capsys.readouterr().out

    said = metadata_of(out)
    assert said["checkpoint_sha256"] == file_hash(trained)
    assert said["model"] == "timm:test_efficientnet"
    assert json.loads(said["classes"])[:2] == ["road", "sidewalk"] and len(json.loads(said["classes"])) == 16
    assert json.loads(said["normalization"])["order"] == "RGB"
    assert json.loads(said["versions"])["torch"] == torch.__version__
    test = json.loads(said["test"])
    assert test["mIoU"] == before["mIoU"] and test["protocol"] == before["protocol"]
    assert not {"DEVICE", "GPU_ID"} & set(json.loads(said["dada_cfg"])), "nor is which of its devices computed"
    assert not any(local in value for value in said.values()), "folders of this machine are nobody else's business"

    state = torch.load(trained, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in read_weights(out).state.items())

    config.reset()  # as on another machine: the file alone describes the network
    parser = argparse.ArgumentParser()
    add_cfg_flags(parser)
    load_cfg(
        parser.parse_args(
            [
                "--cfg",
                str(out),
                "--set",
                f"DATA_DIRECTORY_TARGET={target}",
                f"TEST.RESTORE_FROM=[{out}]",
                f"EXP_ROOT={tmp_path / 'elsewhere'}",
            ]
        )
    )
    assert cfg.TRAIN.HEAD_BIAS is False and cfg.NUM_WORKERS == 0
    (again,) = run_test(cfg, run_of(cfg)).values()
    assert again.as_dict()["confusion"] == before["confusion"]


@pytest.mark.parametrize(
    "options, title, terms",
    [
        (["EXP_NAME=orchard"], "SYNTHIA to Cityscapes", "SYNTHIA and of Cityscapes"),
        (["SOURCE=[GTA5, SYNTHIA]", "TARGET=SYNTHIA"], "GTA5+SYNTHIA to SYNTHIA", "GTA5 and of SYNTHIA"),
        (["TARGET=Folder", "EXP_NAME=orchard"], "SYNTHIA to Folder", "SYNTHIA and of the pictures that they were trained on"),
        (["SOURCE=Folder", "TARGET=Folder", "EXP_NAME=orchard"], "orchard", "the pictures that they were trained on"),
        (["SOURCE=Folder", "TARGET=Folder"], "Folder to Folder", "the pictures that they were trained on"),
    ],
)
def test_a_card_names_the_run_and_each_dataset_whose_terms_may_bind_once(options, title, terms):
    card = model_card(cfg_from_list(options), ["road"], versions={}, commit=None, checkpoint="model_1.pth", sha256="ab")
    assert card.startswith(f"# {title}: {cfg.TRAIN.MODEL}\n") and f"The terms of {terms} may bind" in card


def test_a_test_of_another_file_of_the_same_name_is_left_out(trained, tmp_path, caplog):
    content = torch.load(trained, weights_only=True)
    torch.save({**content, "iter": 7}, trained)
    assert "test" not in write_release(cfg, trained, tmp_path / "model.safetensors")
    assert f"test_{trained.stem}.json reports on another file of this name" in caplog.text


def test_published_weights_are_released_in_our_class_order_and_under_our_names(tmp_path):
    cfg_from_list(["TRAIN.MODEL=resnet-18", "TRAIN.HEAD_BIAS=False", "NUM_CLASSES=19"])
    state = build_model("resnet-18", 19, head_bias=False).state_dict()
    head = "layer6.conv2d_list."
    plca = {
        f"classifier.0.convs.{key[len(head)]}.0.weight" if key.startswith(head) else f"backbone.{key}": value
        for key, value in state.items()
    }
    torch.save({"weights": plca}, tmp_path / "ckpt_final.weights")
    said = write_release(cfg, tmp_path / "ckpt_final.weights", tmp_path / "plca.safetensors")
    network = build_network(cfg, str(tmp_path / "plca.safetensors"))
    sky = json.loads(said["classes"]).index("sky")
    assert torch.equal(network.layer6.conv2d_list[0].weight[sky], plca["classifier.0.convs.0.0.weight"][0])
    cfg.LEGACY.PLCA_CLASS_ORDER = True
    with pytest.raises(ValueError, match="trained with LEGACY.PLCA_CLASS_ORDER False"):
        build_network(cfg, str(tmp_path / "plca.safetensors"))


@pytest.mark.parametrize("bias, wanted, advice", [(True, False, "True"), (False, True, "False")])
def test_a_head_with_or_without_bias_is_answered_with_the_option(bias, wanted, advice, tiny_cfg, tmp_path):
    torch.save(build_model("resnet-18", 16, head_bias=bias).state_dict(), tmp_path / "weights.pth")
    cfg_from_list(["TRAIN.MODEL=resnet-18", f"TRAIN.HEAD_BIAS={wanted}", f"TEST.RESTORE_FROM=[{tmp_path / 'weights.pth'}]"])
    with pytest.raises(ValueError, match=f"weights.pth do not fit DeepLabV2: .*set TRAIN.HEAD_BIAS to {advice}"):
        run_test(cfg, run_of(cfg))


def test_another_ending_and_weights_without_cfg_are_refused(tmp_path, run_script):
    torch.save(build_model("resnet-18", 3).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"a release is a .safetensors file, but --out is '.*model\.pt'"):
        write_release(cfg, tmp_path / "bare.pth", tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="bare.pth holds weights without a configuration; give a YAML file"):
        load_cfg(argparse.Namespace(cfg=[str(tmp_path / "bare.pth")], set=[]))
    with pytest.raises(SystemExit) as exit_:
        run_script("release.py", "--checkpoint", str(tmp_path / "bare.pth"), "--out", str(tmp_path / "model.safetensors"))
    assert "holds weights without a configuration" in exit_.value.code
    assert not (tmp_path / "model.safetensors").exists()
