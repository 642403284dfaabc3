"""A network in a folder and on the Hugging Face Hub, whose place a folder takes behind functions of the real signatures."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image
from tiny import untrained_snapshot

from dada.config import cfg_from_dict, default_cfg
from dada.model.weight_files import read_metadata, read_weights
from dada.publishing.release_file import write_release
from dada.runs import file_hash
from dada.segmenter import Segmenter


@pytest.fixture(scope="module")
def snapshot(city, tmp_path_factory) -> Path:
    return untrained_snapshot(tmp_path_factory.mktemp("snapshot"), city)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder with a folder for each repository."""
    root = tmp_path / "hub"

    def create_repo(name, *, private, exist_ok, **_):
        (root / name).mkdir(parents=True, exist_ok=exist_ok)
        (root / name / "private").write_text(str(private))
        return f"https://huggingface.co/{name}"

    def upload_folder(*, repo_id, folder_path, **_):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(name, filename, *, revision, **_):
        if not (root / name / filename).is_file():
            raise RemoteEntryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        return str(root / name / filename)

    for function in (create_repo, upload_folder, hf_hub_download):
        name = function.__name__
        monkeypatch.setattr(huggingface_hub, name, create_autospec(getattr(huggingface_hub, name), side_effect=function))
    return root


def front_matter(page: Path) -> dict:
    return yaml.safe_load(page.read_text().split("---\n")[1])


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def test_a_network_comes_back_from_a_folder_as_it_was(snapshot, tmp_path, picture):
    segmenter = Segmenter.from_checkpoint(snapshot, device="cpu", options={"TEST.FLIP": True})
    segmenter.save_pretrained(tmp_path / "net", licence="CC-BY-4.0")
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["README.md", "model.safetensors"]
    again = Segmenter.from_pretrained(tmp_path / "net", device="cpu")
    assert again.cfg.TEST.FLIP is True and again.names == segmenter.names
    np.testing.assert_array_equal(again.predict(picture).probabilities, segmenter.predict(picture).probabilities)
    page = (tmp_path / "net" / "README.md").read_text()
    assert front_matter(tmp_path / "net" / "README.md")["license"] == "cc-by-4.0"
    assert "Of these weights: CC-BY-4.0." in page and 'from_pretrained("this folder")' in page


def test_a_network_comes_back_from_the_hub_as_it_was(snapshot, hub, picture):
    segmenter = Segmenter.from_checkpoint(snapshot, device="cpu")
    assert segmenter.push_to_hub("me/net", private=True, token="t") == "https://huggingface.co/me/net"
    assert (hub / "me" / "net" / "private").read_text() == "True"
    again = Segmenter.from_pretrained("me/net", revision="v1", token="t", device="cpu")
    np.testing.assert_array_equal(again.predict(picture).probabilities, segmenter.predict(picture).probabilities)
    _, given = huggingface_hub.hf_hub_download.call_args
    assert given["revision"] == "v1" and given["token"] == huggingface_hub.upload_folder.call_args[1]["token"] == "t"
    page = hub / "me" / "net" / "README.md"
    assert 'dada.Segmenter.from_pretrained("me/net")' in page.read_text() and "license" not in front_matter(page)


def test_a_release_keeps_what_it_says_of_its_test_and_licence(snapshot, tmp_path):
    tested = [{"sha256": file_hash(snapshot)}]
    report = {"mIoU": {"16": 41.5}, "IoU": {"road": 80.0}, "protocol": {}, "seed": 1, "checkpoints": tested}
    (snapshot.parent / f"test_{snapshot.stem}.json").write_text(json.dumps(report))
    released = tmp_path / "a.safetensors"
    write_release(cfg_from_dict(read_weights(snapshot).cfg, "snapshot", default_cfg()), snapshot, released, "my own terms")
    Segmenter.from_checkpoint(released, device="cpu").save_pretrained(tmp_path / "net")
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == released.read_bytes()
    page = tmp_path / "net" / "README.md"
    assert "41.50" in page.read_text()
    assert front_matter(page)["license"] == "other" and front_matter(page)["license_name"] == "my own terms"
    Segmenter.from_pretrained(tmp_path / "net", device="cpu").save_pretrained(tmp_path / "net")  # onto itself
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == released.read_bytes()
    changed = Segmenter.from_checkpoint(released, device="cpu", options={"TEST.FLIP": True})
    changed.save_pretrained(tmp_path / "changed")  # that test was of another cfg
    assert json.loads(read_metadata(tmp_path / "changed" / "model.safetensors")["dada_cfg"])["TEST"]["FLIP"] is True
    assert "41.50" not in (tmp_path / "changed" / "README.md").read_text()


def test_what_is_not_there_and_an_ensemble_are_refused(snapshot, hub, tmp_path):
    (hub / "me" / "empty").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="me/empty on the Hugging Face Hub holds no model.safetensors"):
        Segmenter.from_pretrained("me/empty")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing.model.safetensors does not exist"):
        Segmenter.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="an ensemble of 2 networks is not a single file"):
        Segmenter.from_checkpoint([snapshot, snapshot], device="cpu").save_pretrained(tmp_path / "net")
