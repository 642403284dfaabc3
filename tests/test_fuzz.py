"""Files from anybody: whatever is in them, a reader gives a value or an error of ours that names the file.

No traceback from inside a library, no code of the file, no hang, and no more memory than a file of that size may take.
Mutated files are drawn by hypothesis: the same ones in every short run, others in every long one (`-m slow`).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fuzzing import PLAIN, SECONDS, _bounded, damaged, fuzz, read_or_refused  # noqa: F401  a fixture for all tests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from dada import config
from dada.config import ConfigError, cfg_from_dict, cfg_from_file, cfg_from_list
from dada.dataset import image_files, lists, storage
from dada.dataset.mapillary import _names_in
from dada.dataset.masks import read_colors
from dada.label_sets import label_set_from_info
from dada.model.weight_files import read_weights
from dada.training.checkpoint import check_unchanged, find_checkpoint, fixed_options, must_fit, read_checkpoint
from dada.training.post_mortem import read_post_mortem
from dada.training.rng import rng_state, set_rng_state

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and NumPy's about damage


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(bits: int, channels: int, seed: int = 0) -> bytes:
    import cv2

    shape = (12, 16, channels) if channels > 1 else (12, 16)
    pixels = np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(f"uint{bits}")
    return cv2.imencode(".png", pixels)[1].tobytes()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
PICTURES = [
    png(8, 3),
    png(16, 1),
    png(16, 4),
    saved(NOISE.quantize(8), "PNG"),
    saved(NOISE, "JPEG"),
    saved(NOISE, "BMP"),
    saved(NOISE, "GIF"),
    saved(NOISE, "TIFF", compression="tiff_lzw"),
    saved(NOISE.convert("CMYK"), "TIFF"),
    saved(NOISE, "WEBP"),
    saved(NOISE, "PPM"),
    saved(NOISE.convert("L"), "PNG"),
]


# --- pictures ------------------------------------------------------------------------------------------------


@fuzz(84)
@given(content=damaged(*PICTURES))
def test_a_picture_is_read_or_refused(tmp_path, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for read in (image_files.read_image, image_files.read_label_ids, image_files.read_inverse_depth, read_colors):
        read_or_refused(partial(read, path), path)


def promising(width: int, height: int, bits: int, color: int) -> bytes:
    """A PNG of 70 bytes that says to be very large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (0, 0), (2**31 - 1, 1)], ids=str)
@pytest.mark.parametrize("kind", [(8, 2), (8, 0), (16, 0), (16, 6)], ids=str)
def test_a_picture_that_promises_too_many_pixels_is_refused(tmp_path, size, kind):
    path = tmp_path / "bomb.png"
    path.write_bytes(promising(*size, *kind))
    for read in (image_files.read_image, image_files.read_label_ids, image_files.read_inverse_depth, read_colors):
        assert read_or_refused(partial(read, path), path) is None


def test_a_picture_runs_no_other_program(tmp_path, monkeypatch):
    """Pillow would hand PostScript to Ghostscript."""
    trace, tool = tmp_path / "trace", tmp_path / "gs"
    tool.write_text(f"#!/bin/sh\ntouch {trace}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "image.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=rf"{path} \(78 bytes\) is EPS, which is not read here"):
        image_files.read_image(path)
    assert not trace.exists()


# --- archives ------------------------------------------------------------------------------------------------


def archive(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return out.getvalue()


TEXT = ("a/list.txt", b"one two\n" * 40), ("a/b/picture.png", PICTURES[0])
ARCHIVES = [archive(*TEXT, compression=kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)]


@fuzz(67)
@given(content=damaged(*ARCHIVES))
def test_an_archive_is_read_or_refused(tmp_path, content):
    path = tmp_path / "data.zip"
    storage._archives.clear()  # its index is kept by time and size, which may be those of the one before
    path.write_bytes(content)
    found = read_or_refused(lambda: storage.glob("**", path), path)
    for name in found or ():
        read_or_refused(partial(storage.read_bytes, path / name), path)
        if name.endswith(".png"):
            read_or_refused(partial(image_files.read_image, path / name), path)


def patched(content: bytes, size: int) -> bytes:
    """The archive of one entry with another size in its directory."""
    at = content.index(b"PK\1\2") + 24
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path):
    for kind, megabytes in ((zipfile.ZIP_DEFLATED, 100), (zipfile.ZIP_BZIP2, 20)):
        content = archive(("a", b"\0" * (megabytes << 20)), compression=kind)
        for size in (1000, 3 << 30, 2**32 - 2):
            path = tmp_path / f"{kind}_{size}.zip"
            path.write_bytes(patched(content, size))
            with pytest.raises(ValueError, match=f"{path} is damaged"):
                storage.read_bytes(path / "a")


def test_names_in_an_archive_cannot_be_too_deep_or_lead_out_of_it(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(archive(("a/" * 30_000 + "b", b""), ("../c", b""), ("/d", b"1"), ("e\0f", b"2")))
    assert "d" in storage.list_dir(path) and not {"a", "..", "c"} & set(storage.list_dir(path))


# --- text ----------------------------------------------------------------------------------------------------

LISTS = [b"a.png\nb.png b_label.png\n# c\n", "Straße 1.png\tmask.png\n".encode(), "a.png\n".encode("utf-16")]


@fuzz(50)
@given(content=damaged(*LISTS))
def test_a_list_is_read_or_refused(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    rows = read_or_refused(lambda: lists.read_list(path, "DATA_LIST_SOURCE", tmp_path, lambda: ["b.png"]), path)
    for row in rows or ():
        assert not any("\0" in field for field in row if field is not None)
        image = tmp_path / row.image
        if not (storage.is_file(image) or storage.is_dir(image)):
            with pytest.raises(FileNotFoundError):
                image_files.read_image(image)


def test_a_list_says_what_is_wrong_with_it_and_where(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"a.png\nb\0.png\n")
    with pytest.raises(ValueError, match=f"{path}, line 2 holds a zero byte"):
        list(lists.lines_of(path, "DATA_LIST_SOURCE"))
    path.write_bytes("ä.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path} is not text in UTF-8 .*at byte 0.: save it again as UTF-8"):
        list(lists.lines_of(path, "DATA_LIST_SOURCE"))
    path.write_bytes("\ufeffa.png\n".encode())  # as some editors on Windows begin a file
    assert list(lists.lines_of(path, "DATA_LIST_SOURCE")) == [(1, "a.png")]


CONFIGURATIONS = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yml"))[:6]]
OPTIONS = sorted({name.split(".")[0] for name in config.flat_options()})


@fuzz(50)
@given(content=damaged(*CONFIGURATIONS))
def test_a_configuration_is_read_or_refused(tmp_path, content):
    path = tmp_path / "run.yml"
    path.write_bytes(content)
    config.reset()
    read_or_refused(lambda: cfg_from_file(path), path)


@fuzz(20)
@given(
    values=st.dictionaries(st.sampled_from(OPTIONS), PLAIN, min_size=1, max_size=4),
    inner=st.dictionaries(st.sampled_from(["MAX_ITERS", "LEARNING_RATE", "NAMES", "COLORS", "SCALES", "LABEL_MAP"]), PLAIN),
)
def test_values_of_any_type_are_read_or_refused(tmp_path, values, inner):
    values |= dict.fromkeys(("TRAIN", "CLASSES", "FOLDER_SOURCE"), inner)
    config.reset()
    read_or_refused(lambda: cfg_from_dict(values, "a file"), "a file")
    path = tmp_path / "run.yml"
    try:
        path.write_text(yaml.safe_dump(values), encoding="utf-8", errors="surrogatepass")
    except (ValueError, yaml.YAMLError):  # Python refuses to write some
        return
    read_or_refused(lambda: cfg_from_file(path), path)


ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))])
MERGES = "\n".join(
    ["a0: &a0 {x0: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], x{n}: 1}}" for n in range(1, 10))]
)


@pytest.mark.parametrize(
    "text, reason",
    [
        (ALIASES, "a9 is not an option"),
        (f"{ALIASES}\nTRAIN: {{MAX_ITERS: *a9}}", "expected int"),
        (f"{ALIASES}\nTEST: {{SCALES: *a9}}", "expected float"),
        (MERGES, "a mapping of more than 10000 entries"),
        ("a: &a [*a]\nTRAIN: {MAX_ITERS: *a}", "expected int"),
        ("a: &a {b: *a}\nTRAIN: *a", "TRAIN.b is not an option"),
        ("a: &a 1\nb: [" + "*a, " * 200 + "]", "more than 100 aliases"),
        ("[" * 20_000, "nested too deep"),
        ("a: " * 20_000, "mapping values are not allowed"),
        ("SOURCE: x" + "y" * 300_000, "expected at most 256000"),
        ("TRAIN: {MAX_ITERS: " + "9" * 5000 + "}", "not valid YAML: ValueError"),
        ("TRAIN: {POWER: 0x" + "f" * 5000 + "}", "expected float, got int a number of 20000 bits"),
        ("TRAIN: {POWER: .nan}", "expected float"),
        ("TRAIN: {LEARNING_RATE: .inf}", "expected float"),
        ("NUM_CLASSES: !!timestamp x", "not valid YAML"),
        ("NUM_CLASSES: 2001-99-99", "not valid YAML: ValueError"),
        ("NUM_CLASSES: !!bool x", "not valid YAML: KeyError"),
        ("SOURCE: !!python/object/apply:os.system ['touch CANARY']", "holds Python objects"),
        ("SOURCE: !!python/name:os.system", "holds Python objects"),
        ("\0", "not valid YAML"),
    ],
    ids=lambda value: value[:30],
)
def test_a_configuration_made_to_do_harm_is_refused(tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_or_refused_or_raised(lambda: cfg_from_file(path))
    assert str(path) in str(error.value) and reason in str(error.value) and len(str(error.value)) < 4000
    assert [p.name for p in tmp_path.iterdir()] == ["run.yml"]


def read_or_refused_or_raised(read: Callable[[], object]) -> object:
    """`read()`, unless it hangs."""
    started = time.monotonic()
    try:
        return read()
    finally:
        assert time.monotonic() - started < SECONDS


@fuzz(50)
@given(text=st.one_of(st.text(max_size=30), damaged(b"[1, 2.5, {a: b}]").map(lambda b: b.decode("latin-1"))))
def test_an_override_is_read_or_refused(text):
    for name in ("TRAIN.MAX_ITERS", "TEST.SCALES", "FOLDER_SOURCE.LABEL_MAP", "CLASSES.COLORS"):
        config.reset()
        read_or_refused(partial(cfg_from_list, [f"{name}={text}"]), "--set")


INFO = {
    "classes": 3,
    "label": ["road", "car", "sky"],
    "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    "label2train": [[-1, 255], [0, 0], [1, 1], [2, 2]],
}
MAPILLARY = {"labels": [{"name": "construction--flat--road", "readable": "Road"}, {"name": "nature--sky"}]}


@fuzz(84)
@given(content=damaged(*(json.dumps(value).encode() for value in (INFO, MAPILLARY))))
def test_a_description_of_classes_is_read_or_refused(tmp_path, content):
    path = tmp_path / "info.json"
    path.write_bytes(content)
    read_or_refused(lambda: label_set_from_info(path), path)
    read_or_refused(lambda: _names_in(path), path)


@fuzz(67)
@given(key=st.sampled_from([*INFO, "labels"]), value=PLAIN, where=st.integers(0, 3))
def test_a_description_of_classes_may_hold_anything(tmp_path, key, value, where):
    info = json.loads(json.dumps({**INFO, **MAPILLARY}))
    if where and isinstance(info[key], list):
        info[key][where % len(info[key])] = value
    else:
        info[key] = value
    path = tmp_path / "info.json"
    try:
        path.write_text(json.dumps(info))
    except ValueError:  # a number of more digits than Python writes
        return
    read_or_refused(lambda: label_set_from_info(path), path)
    read_or_refused(lambda: _names_in(path), path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"classes": ' + "9" * 5000 + "}", '{"labels": ' + "[" * 900 + "]" * 900 + "}"])
def test_a_description_of_classes_made_to_do_harm_is_refused(tmp_path, text):
    path = tmp_path / "info.json"
    path.write_text(text)
    for read in (label_set_from_info, _names_in):
        assert read_or_refused(partial(read, path), path) is None


# --- weights and checkpoints ---------------------------------------------------------------------------------

STATE = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.zeros(2))
HEAD = {"format": 1, "iter": 3, "cfg": {"NUM_CLASSES": 16, "TRAIN": {"MAX_ITERS": 6}}, "versions": {}, "data": {}}
CHECKPOINT = {**HEAD, "state_dict": STATE, "discriminators": [], "optimizers": [], "rng": rng_state(CPU)}


def torch_bytes(content: object, **options) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


WEIGHTS = [
    torch_bytes(STATE),
    torch_bytes({"state_dict": STATE, "cfg": {}}),
    torch_bytes(STATE, _use_new_zipfile_serialization=False),
]


@fuzz(84)
@given(content=damaged(*WEIGHTS))
def test_weights_are_read_or_refused(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    found = read_or_refused(lambda: read_weights(path), path)
    assert found is None or all(isinstance(x, torch.Tensor) for x in found.state.values())


@fuzz(67)
@given(data=st.data())
def test_safetensors_are_read_or_refused(tmp_path, data):
    path = tmp_path / "model.safetensors"
    save_file(STATE, path, {"dada_cfg": '{"NUM_CLASSES": 16}'})
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    read_or_refused(lambda: read_weights(path), path)


def safetensors(header: bytes, content: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        safetensors(b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 8]}}'),
        safetensors(b'{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}'),
        safetensors(
            b'{"__metadata__": {"dada_cfg": "'
            + b"[" * 50_000
            + b'"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
        ),
        safetensors(b"[" * 100_000),
    ],
    ids=["header", "shape", "type", "metadata", "deep"],
)
def test_safetensors_made_to_do_harm_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert read_or_refused(lambda: read_weights(path), path) is None


class Harm:
    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("where", ["top", "value", "cfg"])
def test_weights_and_checkpoints_run_no_code(tmp_path, where, old_format):
    trace = tmp_path / "trace"
    harm = Harm(os.system, f"touch {trace}")
    content = {"top": harm, "value": {**CHECKPOINT, "rng": harm}, "cfg": {**CHECKPOINT, "cfg": {"SOURCE": harm}}}[where]
    path = tmp_path / "checkpoint_3.pth"
    path.write_bytes(torch_bytes(content, _use_new_zipfile_serialization=not old_format))
    for read in (read_weights, read_checkpoint, read_post_mortem):
        assert read_or_refused(partial(read, path), path) is None
    path.write_bytes(pickle.dumps(content))
    assert read_or_refused(lambda: read_weights(path), path) is None
    assert not trace.exists()


def test_weights_that_unpack_to_gigabytes_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    bombs = {}
    whole = torch_bytes({"weight": torch.zeros(30 << 20)})
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    bombs["compressed"] = out.getvalue()
    bombs["bytearray"] = torch_bytes({"weight": Harm(bytearray, 20 << 30)})
    bombs["bytearray of old"] = torch_bytes({"weight": Harm(bytearray, 20 << 30)}, _use_new_zipfile_serialization=False)
    nested: list = [torch.zeros(1)] * 9
    for _ in range(12):
        nested = [nested] * 9
    bombs["nested"] = torch_bytes({"format": nested, "cfg": nested, "state_dict": nested})
    del whole, out
    for name, content in bombs.items():
        path.write_bytes(content)
        for read in (read_weights, read_checkpoint, read_post_mortem):
            assert read_or_refused(partial(read, path), path) is None, name


@pytest.mark.parametrize("tensor", [torch.empty(3, device="meta"), torch.eye(3).to_sparse()], ids=["meta", "sparse"])
def test_tensors_that_no_network_takes_are_no_weights(tmp_path, tensor):
    path = tmp_path / "model.pth"
    torch.save({"weight": tensor}, path)
    with pytest.raises(ValueError, match=f"{path} "):
        read_weights(path)


TENSORS = st.sampled_from([torch.zeros(0), torch.zeros(3), torch.ones(2, 2, dtype=torch.int64), torch.tensor(1.0).expand(10**12)])


@fuzz(50)
@given(key=st.sampled_from([*CHECKPOINT, "rng.python", "rng.torch", "rng.numpy"]), value=st.one_of(PLAIN, TENSORS))
def test_a_checkpoint_may_hold_anything(tmp_path, key, value):
    content = {**CHECKPOINT, "rng": dict(CHECKPOINT["rng"])}
    inner = content if "." not in key else content["rng"]
    inner[key.rpartition(".")[2]] = value
    path = tmp_path / "checkpoint_3.pth"
    torch.save(content, path)

    def go_on() -> None:
        found = read_checkpoint(path)
        check_unchanged(path, fixed_options(found["cfg"]), fixed_options(HEAD["cfg"]), "cfg")
        check_unchanged(path, found["data"], {}, "the run")
        network, discriminators = torch.nn.Linear(3, 2), []
        with must_fit(path):
            network.load_state_dict(found["state_dict"])
            for module, state in zip(discriminators, found["discriminators"], strict=True):
                module.load_state_dict(state)
            set_rng_state(found["rng"], CPU)

    read_or_refused(go_on, path)


@fuzz(34)
@given(content=damaged(torch_bytes(CHECKPOINT)))
def test_a_damaged_checkpoint_is_never_taken(tmp_path, content):
    """Either it is as it was, or the one before is taken."""
    torch.save({**CHECKPOINT, "iter": 2}, tmp_path / "checkpoint_2.pth")
    (tmp_path / "checkpoint_3.pth").write_bytes(content)
    path, found = find_checkpoint(tmp_path, "auto")
    assert torch.equal(found["state_dict"]["weight"], STATE["weight"])
    assert path.name == f"checkpoint_{found['iter']}.pth"


# --- what the user sees --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, command",
    [
        ("model.pth", ["train.py", "--cfg"]),
        ("run.yml", ["test.py", "--cfg"]),
        ("model.safetensors", ["release.py", "--out", "x.safetensors", "--checkpoint"]),
        ("post_mortem_3.pth", ["replay.py"]),
    ],
)
def test_a_script_says_it_in_one_message(tmp_path, run_script, capsys, name, command):
    path = tmp_path / name
    path.write_bytes((b"PK\3\4" if path.suffix == ".pth" else b"") + random.Random(0).randbytes(3000))
    with pytest.raises(SystemExit) as ended:
        run_script(*command, path)
    assert ended.value.code.startswith("error: ") and str(path) in ended.value.code
    assert capsys.readouterr() == ("", "")
