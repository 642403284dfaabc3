"""Paths that lead into zip archives behave as if the archive had been unpacked there."""

import multiprocessing
import pickle
import re
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch

from dada.dataset import SYNTHIA, Cityscapes, Draw, EvalTransform, TrainTransform, step_loader, storage
from dada.normalization import CAFFE_BGR

FILES = {
    "train/images/a/1.jpg": b"first",
    "train/images/a/2.jpg": b"second",
    "train/images/b/c/3.jpg": b"third",
    "train/images/b/c/.hidden.jpg": b"",
    "train/masks/1.png": b"mask" * 5000,
    "[odd]/x*.txt": b"odd",
    "notes.txt": b"words",
}


def write_tree(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_tree(folder, path, *, below="", method=zipfile.ZIP_DEFLATED, folders=True):
    """All of `folder` in an archive, under the name `below`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for entry in sorted(folder.rglob("*")):
            if folders or entry.is_file():
                archive.write(entry, f"{below}{entry.relative_to(folder).as_posix()}")
    return path


@pytest.fixture(params=["folder", "zip", "stored", "bzip2", "no folder entries", "inner", "beside", "parts"])
def root(request, tmp_path):
    """A folder, and every way in which it may lie in archives."""
    tree = write_tree(tmp_path / "tree")
    if request.param == "folder":
        return tree
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/set.zip"
    if request.param == "inner":
        return zip_tree(tree, path, below="some/where/") / "some/where"
    if request.param == "beside":  # data/set is asked for, and only data/anything.zip is there
        zip_tree(tree, tmp_path / "data/anything.zip", below="set/")
        return tmp_path / "data/set"
    if request.param == "parts":
        with zipfile.ZipFile(tmp_path / "data/1.ZIP", "w") as one, zipfile.ZipFile(path, "w") as other:
            for number, (name, content) in enumerate(FILES.items()):
                (one if number % 2 else other).writestr(f"set/{name}", content)
        return tmp_path / "data/set"
    methods = {"stored": zipfile.ZIP_STORED, "bzip2": zipfile.ZIP_BZIP2}
    method = methods.get(request.param, zipfile.ZIP_DEFLATED)
    return zip_tree(tree, path, method=method, folders=request.param != "no folder entries")


def test_files_and_folders_are_found_and_read(root):
    for name, content in FILES.items():
        assert storage.read_bytes(root / name) == content == storage.read_bytes(str(root / name))
        assert storage.is_file(root / name) and not storage.is_dir(root / name)
    for name in (".", "train", "train/images/b", "[odd]"):
        assert storage.is_dir(root / name)
    for name in ("trai", "train/1.jpg", "train/images/a/1.jpg/2.jpg", "notes.txt/x"):
        assert not storage.is_file(root / name) and not storage.is_dir(root / name)
        with pytest.raises(FileNotFoundError, match=re.escape(f"{root / name} not found")):
            storage.read_bytes(root / name)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            storage.list_dir(root / name)


def test_folders_are_listed(root):
    assert storage.list_dir(root) == ["[odd]", "notes.txt", "train"]
    assert storage.list_dir(str(root / "train/images/b")) == ["c"]
    assert storage.list_dir(root / "train/images/b/c") == [".hidden.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("train/images/a/1.jpg", ["train/images/a/1.jpg"]),
        ("train/images/*/*.jpg", ["train/images/a/1.jpg", "train/images/a/2.jpg"]),
        ("*/images/**/*.jpg", ["train/images/a/1.jpg", "train/images/a/2.jpg", "train/images/b/c/3.jpg"]),
        ("**/c/**/*.jpg", ["train/images/b/c/3.jpg"]),
        ("**/**/[13].*", ["train/images/a/1.jpg", "train/images/b/c/3.jpg", "train/masks/1.png"]),
        ("train/images/b/**", ["train/images/b/c/3.jpg"]),
        ("**/.h*", ["train/images/b/c/.hidden.jpg"]),
        ("train/?", []),
        ("notes.txt/*", []),
        ("nothing/**/*.jpg", []),
    ],
)
def test_glob(root, pattern, want):
    assert storage.glob(pattern, root) == want


def test_what_is_on_disk_goes_before_what_is_in_an_archive(tmp_path):
    tree = write_tree(tmp_path / "tree")
    zip_tree(tree, tmp_path / "tree/z.zip")
    (tree / "notes.txt").write_bytes(b"newer")
    (tree / "train/images/a/1.jpg").unlink()
    assert storage.read_bytes(tree / "notes.txt") == b"newer"
    assert not storage.is_file(tree / "train/images/a/1.jpg")  # the folder is on disk, so the disk decides
    shutil.rmtree(tree / "train")
    assert storage.read_bytes(tree / "train/images/a/1.jpg") == b"first"
    assert storage.list_dir(tree) == ["[odd]", "notes.txt", "z.zip"]


def test_an_archive_that_changes_is_indexed_again(tmp_path):
    path = tmp_path / "a.zip"
    for text in (b"one", b"three"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x", text)
        assert storage.read_bytes(path / "x") == text


def test_names_with_backslashes_dots_and_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("./images\\1.jpg", b"1")
        archive.writestr("../../outside", b"2")
        archive.writestr("x", b"older")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x", b"newer")
    assert storage.glob("**", tmp_path / "a.zip") == ["images/1.jpg", "x"]
    assert storage.read_bytes(tmp_path / "a.zip/images/1.jpg") == b"1"
    assert storage.read_bytes(tmp_path / "a.zip/x") == b"newer"


# ---- processes and threads


def _read_many(path, rounds=30):
    return all(storage.read_bytes(path / name) == FILES[name] for _ in range(rounds) for name in FILES)


def test_forked_processes_read_at_the_same_time(tmp_path):
    path = zip_tree(write_tree(tmp_path / "tree"), tmp_path / "a.zip")
    assert _read_many(path, 1)  # a handle is open when the children begin
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(_read_many, (path,)) for _ in range(4)]
        assert _read_many(path)
        assert all(result.get(60) for result in results)
        pool.close()
        pool.join()  # ended by themselves: leaving the block would end them by a signal


def test_threads_read_at_the_same_time(tmp_path):
    path = zip_tree(write_tree(tmp_path / "tree"), tmp_path / "a.zip")
    good = []
    threads = [threading.Thread(target=lambda: good.append(_read_many(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 8


# ---- datasets out of archives


def raw_pixels(image):
    return image.float()


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b))


@pytest.fixture(scope="module")
def zipped(city, tmp_path_factory):
    """The toy city as SYNTHIA.zip with an inner folder, and Cityscapes in the two archives it is delivered in."""
    folder = tmp_path_factory.mktemp("zipped")
    zip_tree(city / "SYNTHIA", folder / "SYNTHIA.zip", below="RAND_CITYSCAPES/")
    (folder / "Cityscapes").mkdir()
    for part in ("leftImg8bit", "gtFine"):
        zip_tree(city / "Cityscapes" / part, folder / f"Cityscapes/{part}_trainvaltest.zip", below=f"{part}/")
    return folder


def test_samples_out_of_archives_are_those_of_the_folders_bit_for_bit(city, zipped):
    transform = TrainTransform(CAFFE_BGR, load_size=(48, 64), crop=(48, 48), color_jitter=0.3, second_view=True)
    common = {"transform": transform, "seed": 3}
    for title, here, there in (
        (SYNTHIA, city / "SYNTHIA", zipped / "SYNTHIA.zip/RAND_CITYSCAPES"),
        (Cityscapes, city / "Cityscapes", zipped / "Cityscapes"),
    ):
        split, depth = ("all", True) if title is SYNTHIA else ("val", False)
        folder, archive = (title(path, split, with_depth=depth, **common) for path in (here, there))
        assert len(folder) == len(archive) > 1
        for index in range(len(folder)):
            assert same(folder[Draw(index, 4, 0)], archive[Draw(index, 4, 0)])
        assert same(pickle.loads(pickle.dumps(archive))[0], folder[0])
        for workers in (0, 2):
            batches = [list(step_loader(d, 2, seed=1, stop_step=3, num_workers=workers)) for d in (folder, archive)]
            assert all(same(a, b) for a, b in zip(*batches))


def test_a_root_that_is_an_archive_one_level_too_high_is_recognised(zipped):
    with pytest.raises(FileNotFoundError, match="Did you mean '.*SYNTHIA.zip/RAND_CITYSCAPES'"):
        SYNTHIA(zipped / "SYNTHIA.zip", transform=raw_pixels)


def test_a_missing_label_in_an_archive_is_counted(city, zipped, tmp_path):
    with zipfile.ZipFile(tmp_path / "S.zip", "w") as archive:
        for entry in sorted((city / "SYNTHIA").rglob("*.png")):
            if entry.name != "0000001.png" or "RGB" in entry.parts:
                archive.write(entry, entry.relative_to(city / "SYNTHIA").as_posix())
    with pytest.raises(FileNotFoundError, match="1 of 4 labels of SYNTHIA images are missing: .*S.zip/"):
        SYNTHIA(tmp_path / "S.zip", transform=raw_pixels)


# ---- what goes wrong


def test_a_damaged_archive_is_refused_where_it_is_named_and_mentioned_where_it_is_not(tmp_path, zipped):
    (tmp_path / "Cityscapes").mkdir()
    path = tmp_path / "Cityscapes/leftImg8bit_trainvaltest.zip"
    path.write_bytes((zipped / "Cityscapes/leftImg8bit_trainvaltest.zip").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"leftImg8bit_trainvaltest.zip is not a readable zip archive \(\d+ bytes\)"):
        storage.is_dir(path / "leftImg8bit")
    assert not storage.is_dir(tmp_path / "Cityscapes/leftImg8bit")
    with pytest.raises(FileNotFoundError, match="Cityscapes images (.|\n)*not a readable zip archive"):
        Cityscapes(tmp_path / "Cityscapes", "val", transform=EvalTransform(raw_pixels))


def test_another_kind_of_archive_is_refused_by_name(tmp_path):
    (tmp_path / "SYNTHIA.rar").write_bytes(b"Rar!")
    with pytest.raises(FileNotFoundError, match="SYNTHIA.rar is a file, neither a folder nor a .zip archive"):
        SYNTHIA(tmp_path / "SYNTHIA.rar", transform=raw_pixels)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_damaged_content_is_noticed(tmp_path, method):
    path = tmp_path / "a.zip"
    noise = np.random.default_rng(0).bytes(4000)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x", noise)
        archive.writestr("y", b"whole")
    data = bytearray(path.read_bytes())
    data[2000] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.zip is damaged: x in it does not unpack to the 4000 bytes"):
        storage.read_bytes(path / "x")
    assert storage.read_bytes(path / "y") == b"whole"


def test_encryption_and_unknown_packing_are_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", b"x")
    with pytest.raises(ValueError, match="a.zip: x is packed with lzma.*pack it again"):
        storage.read_bytes(path / "x")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flags of the entry in the central directory
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.zip is encrypted, cannot read x in it"):
        storage.read_bytes(path / "x")


def test_linked_folders_are_entered_once_and_loops_are_cut(tmp_path):
    for name in ("root/a/1.png", "root/.cache/2.png", "outside/b/3.png", "root/links/keep.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name, target in (
        ("links/again", tmp_path / "root/a"),
        ("links/cached", tmp_path / "root/.cache"),
        ("links/day1", tmp_path / "outside"),
        ("links/day2", tmp_path / "outside"),
        ("links/loop", tmp_path / "root"),
        ("links/up", tmp_path),
        ("links/itself", tmp_path / "root/links/itself"),
    ):
        (tmp_path / "root" / name).symlink_to(target)
    found = ["a/1.png", "links/cached/2.png", "links/day1/b/3.png"]
    assert storage.glob("**/*.png", tmp_path / "root") == found
    assert storage.glob("links/**/*.png", tmp_path / "root") == ["links/again/1.png", *found[1:]]
    assert storage.glob("links/*/*.png", tmp_path / "root") == ["links/again/1.png", "links/cached/2.png"]
