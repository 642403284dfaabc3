"""A release as a folder in the form of the Hugging Face Hub: `model.safetensors`, and its model card as README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dada import __version__
from dada.files import write_whole
from dada.model.weight_files import read_metadata
from dada.publishing.release_file import portable_cfg, write_release

WEIGHTS = "model.safetensors"
# Licences that the Hub knows under these names; it refuses a page with others, but for "other".
_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"}


def find_weights(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The weights in a folder of that name, else in the Hub's repository `name`, from the Hub's cache where they are there.

    Raises:
        FileNotFoundError: there are none in the folder or repository.
        OSError, ValueError: of huggingface_hub: no such repository or revision, no connection, no name of a repository.
    """
    if Path(name).is_dir():
        return Path(name) / WEIGHTS
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                str(name), WEIGHTS, revision=revision, token=token, library_name="dada-seg", library_version=__version__
            )
        )
    except LocalEntryNotFoundError:  # no connection, and not in the cache
        raise
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{name} on the Hugging Face Hub holds no {WEIGHTS}, as push_to_hub writes it") from error


def write_folder(cfg: Any, checkpoint: Path, folder: str | Path, licence: str = "", name: str = "") -> None:
    """Write weights and model card; a release is copied where cfg and licence are still its own.

    Args:
        name: of the repository, for the page.
    """
    out = Path(folder) / WEIGHTS
    out.parent.mkdir(parents=True, exist_ok=True)
    said = read_metadata(checkpoint)
    licence = licence or said.get("licence", "")
    same_cfg = json.loads(said.get("dada_cfg", "null")) == json.loads(json.dumps(portable_cfg(cfg)))
    if "model_card" in said and same_cfg and licence == said.get("licence", ""):
        if not (out.exists() and out.samefile(checkpoint)):
            shutil.copyfile(checkpoint, out)
    else:
        said = write_release(cfg, checkpoint, out, licence)
        out.with_suffix(".md").unlink()
    use = f'from_pretrained("{name or "this folder"}")'
    page = said["model_card"].replace('from_checkpoint("this_file.safetensors")', use)
    write_whole(out.parent / "README.md", f"---\n{_front_matter(licence)}---\n\n{page}".encode())


def _front_matter(licence: str) -> str:
    """What the Hub reads of a page, YAML."""
    known = licence.lower() in _LICENCES
    lines = ["library_name: dada-seg", "pipeline_tag: image-segmentation", "tags: [semantic-segmentation, domain-adaptation]"]
    if licence:
        lines.append(f"license: {licence.lower() if known else 'other'}")
    if licence and not known:
        lines.append(f"license_name: {json.dumps(licence)}")
    return "".join(f"{line}\n" for line in lines)


def push(
    cfg: Any, checkpoint: Path, name: str, licence: str = "", private: bool | None = None, token: str | bool | None = None
) -> str:
    """Write such a folder and upload it as the repository `name`, which is made if it is not there. Returns its address."""
    import huggingface_hub

    with TemporaryDirectory() as folder:
        write_folder(cfg, checkpoint, folder, licence, name)
        url = huggingface_hub.create_repo(name, private=private, token=token, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=name, folder_path=folder, token=token, commit_message="Upload weights and model card"
        )
    return str(url)
