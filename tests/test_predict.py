"""scripts/predict.py: what is written where, that it goes on where it was stopped, and what it refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import untrained_snapshot

import dada
from dada.commands import predict, predict_video
from dada.commands.predict import find_inputs, predict_files


@pytest.fixture(scope="module")
def checkpoint(city, tmp_path_factory) -> Path:
    return untrained_snapshot(tmp_path_factory.mktemp("snapshot"), city, "TEST.INPUT_SIZE_TARGET=[64, 32]")


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return dada.Segmenter.from_checkpoint(checkpoint, device="cpu")


@pytest.fixture
def photos(tmp_path) -> Path:
    """a/1.png, a/2.jpg, b/1.png and a text, below photos/."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a/1.png", "a/2.jpg", "b/1.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((50 + seed, 33), Image.BICUBIC).save(path)
    (folder / "notes.txt").write_text("nothing to see")
    return folder


def written(out: Path) -> list[str]:
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def test_the_script_writes_what_was_asked_for_and_keeps_the_folders(checkpoint, segmenter, photos, tmp_path, capsys, run_script):
    out = tmp_path / "out"
    flags = ["--write", "overlay", "palette", "cityscapes", "confidence", "--alpha", "0.3", "--batch", "2", "--device", "cpu"]
    run_script("predict.py", "--checkpoint", checkpoint, "--out", out, *flags, "--", photos)
    assert f"3 predicted, passed over 1 .txt: {out}" in capsys.readouterr().out
    kinds = ("cityscapes", "confidence", "overlay", "palette")
    assert written(out) == [f"{k}/{n}.png" for k in kinds for n in ("a/1", "a/2", "b/1")] + ["prediction.json"]
    wanted = segmenter.predict(photos / "a/2.jpg")
    assert np.array_equal(np.asarray(Image.open(out / "palette/a/2.png")), wanted.ids)
    assert np.array_equal(np.asarray(Image.open(out / "cityscapes/a/2.png")), wanted.cityscapes_ids())
    assert np.array_equal(np.asarray(Image.open(out / "overlay/a/2.png")), np.asarray(wanted.overlay(0.3)))
    shown = np.asarray(Image.open(out / "confidence/a/2.png")).astype(int)
    assert np.abs(shown - wanted.confidence * 255).max() <= 0.5001


def test_a_second_call_predicts_only_what_is_missing(segmenter, photos, tmp_path):
    out = tmp_path / "out"
    assert predict_files(segmenter, [photos], out).written == 3
    (out / "overlay/a/2.png").unlink()
    (out / "palette/b/.1.png.abc.part").write_text("of a call that was killed")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    done = predict_files(segmenter, [photos], out)
    assert (done.written, done.skipped) == (1, 2) and "2 existed already" in str(done)
    changed = [str(p.relative_to(out)) for p, time in before.items() if p.stat().st_mtime_ns != time]
    assert changed == ["palette/a/2.png"] and (out / "overlay/a/2.png").is_file() and not list(out.rglob("*.part"))
    assert predict_files(segmenter, [photos], out, overwrite=True).written == 3


def test_nothing_half_is_left_where_a_prediction_is_cut_short(segmenter, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def fails(prediction, alpha):
        raise KeyboardInterrupt

    monkeypatch.setitem(predict.KINDS, "palette", fails)
    with pytest.raises(KeyboardInterrupt):
        predict_files(segmenter, [photos], out, kinds=("palette",))
    assert written(out) == ["prediction.json"]


def test_predictions_of_other_weights_or_options_are_not_mixed(checkpoint, segmenter, photos, tmp_path):
    out = tmp_path / "out"
    predict_files(segmenter, [photos / "b"], out)
    other = dada.Segmenter.from_checkpoint(checkpoint, device="cpu", options={"TEST.FLIP": True})
    with pytest.raises(
        ValueError, match=r"holds predictions made otherwise \(TEST.FLIP differ\): choose another --out, or .*--overwrite"
    ):
        predict_files(other, [photos / "b"], out)
    assert predict_files(other, [photos / "b"], out, overwrite=True).written == 1
    (out / "prediction.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a record of predictions"):
        predict_files(other, [photos / "b"], out)


def test_unreadable_images_end_the_call_or_are_named(checkpoint, segmenter, photos, tmp_path, caplog):
    (photos / "a/0.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    with pytest.raises(ValueError, match=r"(?s)cannot read .*a/0\.png.*With --set ON_BAD_FILE=skip"):
        predict_files(segmenter, [photos], tmp_path / "out")
    skipping = dada.Segmenter.from_checkpoint(checkpoint, device="cpu", options=["ON_BAD_FILE=skip"])
    done = predict_files(skipping, [photos], tmp_path / "out", batch=2)
    assert done.written == 3 and done.unreadable == (str(photos / "a/0.png"),) and "1 could not be read" in str(done)
    assert "skipped: cannot read" in caplog.text


def test_inputs_are_files_folders_and_patterns(photos, tmp_path):
    def names(*inputs):
        return [str(w.name) for w in find_inputs(inputs, tmp_path / "out")]

    assert names(photos) == ["a/1", "a/2", "b/1"]
    with pytest.raises(ValueError, match="would both be written as 1.png"):
        names(photos / "a/1.png", photos / "b")
    assert names(f"{photos}/**/*.png") == ["a/1", "b/1"] and names(f"{photos}/a/*") == ["1", "2"]
    assert names(photos, photos) == ["a/1", "a/2", "b/1"]
    inside = photos / "pred/overlay"
    inside.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(inside / "x.png")
    assert [str(w.name) for w in find_inputs([photos], photos / "pred")] == ["a/1", "a/2", "b/1"]


def test_a_folder_is_listed_as_datasets_are_and_what_is_passed_over_is_counted_by_ending(segmenter, photos, tmp_path):
    """Neither hidden files nor hidden folders, linked folders once, loops cut."""
    for name in ("._1.png", ".ipynb_checkpoints/1-checkpoint.png", "a/b.HEIC", "c.heic", "d.avif", "e.mp4", "noending"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"\0\5\26\7junk")
    (tmp_path / "card").mkdir()
    Image.new("RGB", (8, 5)).save(tmp_path / "card/9.png")
    (photos / "day1").symlink_to(tmp_path / "card")
    (photos / "day2").symlink_to(tmp_path / "card")
    (photos / "loop").symlink_to(photos)
    assert [str(w.name) for w in find_inputs([photos], tmp_path / "out")] == ["a/1", "a/2", "b/1", "day1/9"]
    done = str(predict_files(segmenter, [photos], tmp_path / "out"))
    assert (
        done.startswith("4 predicted, passed over 2 .heic, ")
        and "1 .mp4" in done
        and "name videos" in done
        and "1 without ending" in done
    )
    (tmp_path / "heics").mkdir()
    (tmp_path / "heics/a.heic").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"heics holds no image; images end in .*; there are 1 \.heic"):
        find_inputs([tmp_path / "heics"], tmp_path / "out")


def test_inputs_that_cannot_be_used_are_refused(segmenter, photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give images, videos, folders, or patterns"):
        find_inputs(["nowhere"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no image; images end in \.png"):
        find_inputs([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"1\.png and .*1\.png would both be written as 1\.png"):
        find_inputs([photos / "a/1.png", photos / "b/1.png"], tmp_path / "out")
    Image.new("RGB", (4, 4)).save(photos / "a/1.bmp")
    with pytest.raises(ValueError, match=r"a/1\.bmp and .*a/1\.png would both be written"):
        find_inputs([photos], tmp_path / "out")
    with pytest.raises(ValueError, match="cannot write 'heatmap', only overlay, palette, cityscapes, confidence"):
        predict_files(segmenter, [photos], tmp_path / "out", kinds=("heatmap",))
    with pytest.raises(ValueError, match="batches from 1"):
        predict_files(segmenter, [photos], tmp_path / "out", batch=0)


def test_classes_without_cityscapes_ids_are_refused_before_anything_is_predicted(city, photos, tmp_path):
    (tmp_path / "own").mkdir()
    path = untrained_snapshot(tmp_path / "own", city, "CLASSES.NAMES=[grass, apple]")
    own = dada.Segmenter.from_checkpoint(path, device="cpu")
    with pytest.raises(ValueError, match="no Cityscapes labelIds for the classes grass, apple"):
        predict_files(own, [photos], tmp_path / "out", kinds=("cityscapes",))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def video(tmp_path) -> Path:
    path = tmp_path / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MPEG-4")
    for k in range(5):
        writer.write(np.full((48, 64, 3), 40 * k, np.uint8))
    writer.release()
    return path


def test_a_video_gets_an_overlay_of_its_own_size_and_rate(segmenter, video, tmp_path):
    out = tmp_path / "out"
    done = predict_files(segmenter, [video], out, kinds=("overlay",), batch=2)
    assert done.written == 1 and written(out) == ["overlay/drive.mp4", "prediction.json"]
    capture = cv2.VideoCapture(str(out / "overlay/drive.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == 10 and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    frames = [capture.read()[1] for _ in range(5)]
    assert frames[0].shape == (48, 64, 3)
    original = cv2.VideoCapture(str(video)).read()[1][..., ::-1]
    wanted = np.asarray(segmenter.predict(original).overlay(0.5)).astype(int)
    assert np.abs(frames[0][..., ::-1].astype(int).mean(axis=(0, 1)) - wanted.mean(axis=(0, 1))).max() < 6, "but for compression"
    assert predict_files(segmenter, [video], out, kinds=("overlay",)).skipped == 1


def frames_of(path: Path) -> np.ndarray:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        frames.append(frame[1][..., ::-1])
    return np.stack(frames).astype(int)


def test_everything_that_is_asked_for_is_written_of_a_video(segmenter, video, tmp_path):
    kinds = ("overlay", "palette", "confidence")
    predict_files(segmenter, [video], tmp_path / "out", kinds=kinds, batch=3)
    assert written(tmp_path / "out") == [*(f"{kind}/drive.mp4" for kind in sorted(kinds)), "prediction.json"]
    predicted = segmenter.predict([frame.astype(np.uint8) for frame in frames_of(video)])
    palette = np.stack([np.asarray(p.palette().convert("RGB")) for p in predicted]).astype(int)
    confidence = np.stack([p.confidence for p in predicted]) * 255
    assert np.abs(frames_of(tmp_path / "out/palette/drive.mp4") - palette).mean() < 12, "but for compression"
    assert np.abs(frames_of(tmp_path / "out/confidence/drive.mp4").mean(axis=-1) - confidence).mean() < 6
    with pytest.raises(ValueError, match="ids do not survive the compression of a video: leave cityscapes out"):
        predict_files(segmenter, [video], tmp_path / "ids", kinds=("cityscapes",))


@pytest.mark.parametrize("size", [(63, 47), (64, 47), (63, 48)])
def test_videos_of_odd_sizes_lose_no_pixel(size, tmp_path):
    width, height = size
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[-1], frame[:, -1] = 250, 250
    part = tmp_path / "odd.mp4"
    with predict_video._writing(part, 10.0, (height, width)) as writer:
        for _ in range(3):
            writer.write(predict_video._even(frame))
    found = frames_of(part)
    assert found.shape == (3, height + height % 2, width + width % 2, 3)
    assert found[-1, height - 1].mean() > 200 and found[-1, :, width - 1].mean() > 200 and found[-1, 5, 5].mean() < 120


def test_without_vp9_videos_are_written_with_a_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(predict_video, "CODECS", ("none", "mp4v"))
    with predict_video._writing(tmp_path / "a.mp4", 10.0, (48, 64)) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert "writes no VP9 here: videos are MPEG-4 Part 2, which browsers do not play" in caplog.text
    monkeypatch.setattr(predict_video, "CODECS", ("none",))
    with pytest.raises(ValueError, match="cannot write videos here"), predict_video._writing(tmp_path / "b.mp4", 10.0, (48, 64)):
        pass


def test_what_is_no_video_is_refused_and_leaves_nothing(segmenter, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.mp4 as a video: OpenCV"):
        predict_files(segmenter, [tmp_path / "broken.mp4"], tmp_path / "out")
    assert written(tmp_path / "out") == ["prediction.json"]


def test_the_record_names_weights_and_options(segmenter, photos, tmp_path):
    predict_files(segmenter, [photos / "b"], tmp_path / "out")
    record = json.loads((tmp_path / "out/prediction.json").read_text())
    assert record["sha256"] == segmenter.sha256 and record["options"]["TEST.INPUT_SIZE_TARGET"] == [64, 32]
    assert record["classes"][0] == "road" and record["alpha"] == 0.5


def test_pictures_that_are_brightened_differently_are_warned_of(segmenter, tmp_path, caplog):
    grey = np.random.default_rng(0).integers(0, 256, (33, 50)).astype(np.uint16)
    for name, shift in (("bright", 4), ("dark", 2)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(grey << shift).save(tmp_path / f"photos/{name}.png")
    predict_files(segmenter, [tmp_path / "photos"], tmp_path / "out", kinds=["palette"])
    assert "taken for white, 1023 (1), 4095 (1): set FOLDER_TARGET.WHITE" in caplog.text
