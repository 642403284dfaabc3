"""A trained network as one object: the numbers of the test, from every kind of file and every kind of picture."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_NETWORK, tiny_options, untrained_snapshot

import dada
from dada import build, config
from dada.config import cfg, cfg_from_list, plain_cfg
from dada.evaluation.tester import load_predictor
from dada.label_sets import label_set
from dada.model import build_model
from dada.model.batch_norm import DomainBatchNorm2d
from dada.publishing import release_file as release
from dada.publishing.release_file import write_release
from dada.runs import file_hash
from dada.segmenter import Prediction

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(city, tmp_path_factory) -> Path:
    return untrained_snapshot(tmp_path_factory.mktemp("snapshot"), city)


@pytest.fixture(scope="module")
def segmenter(plain):
    return dada.Segmenter.from_checkpoint(plain, device="cpu")


@pytest.fixture
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 61), Image.BICUBIC)


def test_importing_the_package_alone_does_not_import_torch():
    code = "import sys, dada; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
    assert dada.Segmenter.__module__ == "dada.segmenter"
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = dada.Segmentor


VARIANTS = {
    "as it is": [],
    "all at once": [
        "TEST.FLIP=True",
        "TEST.SCALES=[1.0, 0.75]",
        "TEST.SLIDE_CROP=[64, 48]",
        "TEST.RESAMPLE=bilinear",
        "ALIGN_CORNERS=False",
    ],
    "aggregation": ["TEST.WITH_AGGREGATION=True"],
    "DADA": ["USE_DEPTH=True", "TEST.KEEP_RATIO=True"],
    "domain batch norm": ["TRAIN.DOMAIN_BN=True"],
    "two heads": ["TRAIN.MULTI_LEVEL=True", "TEST.UPSAMPLE_VIA_INPUT=True"],
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_predictions_are_those_of_the_test(options, city, tmp_path):
    path = untrained_snapshot(tmp_path, city, *options)
    made = dada.Segmenter.from_checkpoint(path, device="cpu")
    cfg_from_list([*tiny_options(city, tmp_path / "runs"), *options])
    predictor = load_predictor(cfg, [path], CPU)
    loader = build.eval_loader(cfg, predictor.networks[0].normalization)
    for item, batch in zip(loader.dataset.items, loader):
        wanted = predictor(batch.image, tuple(batch.label.shape[-2:]))[0]
        found = made.predict(item.image)
        assert np.array_equal(found.probabilities, wanted.numpy())
        assert np.array_equal(found.ids, wanted.argmax(dim=0).numpy())
        assert np.array_equal(found.confidence, wanted.amax(dim=0).numpy())
        assert len(np.unique(found.ids)) > 1, "a map of one class would agree with anything"


def test_padded_images_of_mapillary_are_predicted_as_the_test_does(plain, photo):
    made = dada.Segmenter.from_checkpoint(
        plain, device="cpu", options={"TARGET": "Mapillary", "TEST.INPUT_SIZE_TARGET": (64, 64)}
    )
    found = made.predict(photo)
    transform = made._transform(None, None)
    views = transform(photo, Image.new("L", photo.size))
    assert transform.pad and views.label.shape == (90, 90)
    wanted = made.predictor(views.image[None], (90, 90))[0, :, :61]
    assert np.array_equal(found.probabilities, wanted.numpy()) and found.ids.shape == (61, 90)


def test_options_of_one_call_are_those_of_the_cfg(plain, segmenter, photo):
    options = {
        "TEST.FLIP": True,
        "TEST.SCALES": [1.0, 0.5],
        "TEST.SLIDE_CROP": [48, 40],
        "TEST.SLIDE_STRIDE": [32, 32],
        "TEST.KEEP_RATIO": True,
        "TEST.INPUT_SIZE_TARGET": [96, 80],
    }
    wanted = dada.Segmenter.from_checkpoint(plain, device="cpu", options=options).predict(photo)
    found = segmenter.predict(
        photo, flip=True, scales=(1.0, 0.5), window=(48, 40), stride=(32, 32), keep_ratio=True, size=(96, 80)
    )
    assert np.array_equal(found.probabilities, wanted.probabilities)
    again = segmenter.predict(photo)
    assert not np.array_equal(again.probabilities, wanted.probabilities), "they hold for one call"
    with pytest.raises(ValueError, match=r"size is \(width, height\)"):
        segmenter.predict(photo, size=(96,))
    with pytest.raises(ValueError, match="TEST.SLIDE_STRIDE moves windows"):
        segmenter.predict(photo, stride=(8, 8))


def test_every_kind_of_picture_gives_the_same(segmenter, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    pixels = np.asarray(photo)
    alike = [
        photo,
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        photo.convert("RGBA"),
        np.dstack([pixels, np.zeros((61, 90), np.uint8)]),
        pixels.astype(np.uint16) << 8,
        (pixels.astype(np.uint16) << 8).astype(">u2"),
        torch.from_numpy(np.dstack([pixels, np.zeros((61, 90), np.uint8)])).permute(2, 0, 1),
        (tmp_path / "a.png").read_bytes(),
        bytearray((tmp_path / "a.png").read_bytes()),
        io.BytesIO((tmp_path / "a.png").read_bytes()),
        SimpleNamespace(read=(tmp_path / "a.png").read_bytes),
        type("Entry", (), {"__fspath__": lambda self: str(tmp_path / "a.png")})(),
        type("Shared", (), {"__array__": lambda self, *_, **__: pixels, "ndim": 3})(),
    ]
    found = segmenter.predict(alike)
    single = segmenter.predict(photo)
    for prediction in found:
        np.testing.assert_allclose(prediction.probabilities, single.probabilities, atol=1e-5)  # a batch adds in another order
    batch = segmenter.predict(np.stack([pixels, pixels]), probabilities=False)
    assert len(batch) == 2 and batch[0].probabilities is None
    mixed = segmenter.predict([photo, photo.resize((40, 70))], keep_ratio=True)
    assert [p.ids.shape for p in mixed] == [(61, 90), (70, 40)]


def test_grey_16_bit_and_turned_pictures_are_read_as_they_look(segmenter, photo, tmp_path):
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / "16.png")
    Image.fromarray(grey).save(tmp_path / "8.png")
    wanted = segmenter.predict(tmp_path / "8.png")
    for same in (tmp_path / "16.png", Image.open(tmp_path / "16.png"), grey, torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(segmenter.predict(same).probabilities, wanted.probabilities)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = segmenter.predict(tmp_path / "turned.png")
    assert turned.image.size == photo.size and np.array_equal(turned.ids, segmenter.predict(photo).ids)


def test_scores_of_huge_pictures_take_no_more_memory_than_they_may(segmenter, photo, monkeypatch):
    whole = segmenter.predict(photo)
    monkeypatch.setattr("dada.segmenter.MOST_PIXELS", 61 * 90 // 4)
    found = segmenter.predict(photo)
    assert found.ids.shape == (61, 90) and found.probabilities.shape == (16, 61, 90)
    assert (found.ids == whole.ids).mean() > 0.8
    assert len(np.unique(found.confidence)) <= 61 * 90 // 4 < len(np.unique(whole.confidence))


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.full((4, 4), -1, np.float32), "holds fractions from -1 to -1, expected 0 to 1"),
        (np.zeros((3, 8, 9), np.uint8), r"\(H, W, 3\), RGB.* got \(3, 8, 9\); tensors have channels first"),
        (torch.zeros(8, 9, 3), r"a tensor of an image is \(3, H, W\), .* got \(8, 9, 3\)"),
        (7, "expected a path, bytes, a file object, a PIL image, an array or a tensor, got int"),
        (None, r"the image is None, which is what cv2\.imread gives"),
        ([None], r"the image is None, which is what cv2\.imread gives"),
        ([], "no image to predict: the sequence is empty"),
        (b"", r"cannot read the given bytes \(0 bytes\)"),
        (b"\x89PNG\r\n", "cannot read the given bytes"),
        (io.StringIO("text"), "opened in binary mode, 'rb'"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message, segmenter):
    with pytest.raises(ValueError, match=message):
        segmenter.predict(picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 256}, r"size is \(width, height\) in whole pixels, got 256"),
        ({"size": (64.5, 64)}, r"size is \(width, height\) in whole pixels, got \(64\.5, 64\)"),
        ({"window": (48.0, 40)}, "window is"),
        ({"window": (48, 40), "stride": [0, 8]}, r"stride is \(width, height\) in whole pixels, got \[0, 8\]"),
        ({"scales": []}, "scales .* one or more numbers above 0"),
        ({"scales": 0.5}, "scales .* one or more numbers above 0"),
        ({"scales": [1.0, 0.0]}, "scales .* one or more numbers above 0"),
        ({"scales": [float("nan")]}, "scales .* one or more numbers above 0"),
        ({"scales": [1e-4]}, "at scale 0.0001 nothing is left of an image of"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options, message, segmenter, photo):
    with pytest.raises(ValueError, match=message):
        segmenter.predict(photo, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_default_dtype_of_the_program_around_changes_nothing(plain, segmenter, photo, dtype):
    expected = segmenter.predict(photo).probabilities
    torch.set_default_dtype(dtype)
    try:
        found = dada.Segmenter.from_checkpoint(plain, device="cpu").predict(photo).probabilities
        assert torch.get_default_dtype() == dtype and np.array_equal(found, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_missing_and_broken_files_are_named(segmenter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image .*none\.png does not exist"):
        segmenter.predict(tmp_path / "none.png")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read .*half\.png"):
        segmenter.predict(tmp_path / "half.png")


def test_a_prediction_draws_itself():
    classes = label_set(19)
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.new("RGB", (4, 3), (10, 20, 30))
    prediction = Prediction(image, ids, np.ones((3, 4), np.float32), None, classes)
    assert prediction.names == classes.names and prediction.palette().mode == "P"
    assert np.array_equal(np.asarray(prediction.palette()), ids)
    assert np.array_equal(np.asarray(prediction.overlay(0)), np.asarray(image))
    assert np.array_equal(np.asarray(prediction.overlay(1)), classes.palette[ids])
    assert prediction.cityscapes_ids().tolist() == [[7, 8, 11, 12], [13, 17, 19, 20], [21, 22, 23, 24]]
    with pytest.raises(ValueError, match="alpha is the share of the colours"):
        prediction.overlay(1.5)
    with pytest.raises(ValueError, match="no Cityscapes labelIds for the classes flat, construction"):
        Prediction(image, ids % 7, prediction.confidence, None, label_set(7)).cityscapes_ids()


def test_the_cfg_of_the_caller_is_left_alone(plain):
    cfg_from_list(["TEST.FLIP=True", "EXP_NAME=mine"])
    before = plain_cfg(cfg)
    made = dada.Segmenter.from_checkpoint(plain, device="cpu", options=["TEST.SCALES=[0.5]"])
    assert plain_cfg(cfg) == before
    assert made.cfg.EXP_NAME == "tiny" and made.cfg.TEST.FLIP is False and made.cfg.TEST.SCALES == (0.5,)


def test_a_release_gives_back_its_card_and_its_own_classes(city, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(release, "git_commit", lambda: "0123abc")
    (tmp_path / "run").mkdir()
    options = [
        "CLASSES.NAMES=[grass, trunk, apple]",
        "CLASSES.COLORS=[[0, 160, 0], [120, 80, 40], [200, 0, 30]]",
        "TRAIN.DOMAIN_BN=True",
    ]
    path = untrained_snapshot(tmp_path / "run", city, *options)
    cfg_from_list([*tiny_options(city, tmp_path / "runs"), *options])
    report = {
        "mIoU": {"3": 41.5},
        "IoU": {"grass": 60.0, "trunk": 23.0, "apple": None},
        "seed": 1234,
        "protocol": {"PROTOCOL": "advent", "TARGET": "Cityscapes", "SET_TARGET": "val", "FLIP": False},
    }
    report["checkpoints"] = [{"file": str(path), "sha256": file_hash(path)}]
    (path.parent / f"test_{path.stem}.json").write_text(json.dumps(report))
    write_release(cfg, path, tmp_path / "apples.safetensors", licence="CC-BY-4.0")
    config.reset()

    made = dada.Segmenter.from_checkpoint(tmp_path / "apples.safetensors", device="cpu")
    assert made.names == ("grass", "trunk", "apple") and made.classes.palette.tolist()[2] == [200, 0, 30]
    assert any(isinstance(module, DomainBatchNorm2d) for module in made.predictor.networks[0].modules())
    assert made.card == (tmp_path / "apples.md").read_text()
    for said in (
        "SYNTHIA, split `all`",
        "Cityscapes, split `train`",
        "mIoU, 3 classes** | 41.50",
        "| apple | - |",
        "Protocol: advent",
        "Of these weights: CC-BY-4.0",
        "commit `0123abc`",
        "Iterations | 7",
        report["checkpoints"][0]["sha256"],
    ):
        assert said in made.card
    assert str(tmp_path) not in made.card
    plain_one = dada.Segmenter.from_checkpoint(path, device="cpu")
    assert plain_one.card == "" and plain_one.names == made.names
    assert np.array_equal(plain_one.predict(photo).probabilities, made.predict(photo).probabilities)


def published(folder: Path, kind: str) -> tuple[Path, dict]:
    """Weights under the names of their publishers, and the cfg that they need."""
    options = {"TRAIN.MODEL": "resnet-18", "NUM_CLASSES": 19, "TEST.INPUT_SIZE_TARGET": [64, 32]}
    if kind == "ADVENT":
        state = build_model("resnet-18", 19, multi_level=True).state_dict()
        content, more = state, {"TRAIN.MULTI_LEVEL": True}
    elif kind == "DADA":
        content, more = build_model("resnet-18", 19, with_depth=True).state_dict(), {"USE_DEPTH": True}
    else:
        state = build_model("resnet-18", 19, head_bias=False, domain_bn=True).state_dict()
        head = "layer6.conv2d_list."
        renamed = {
            f"classifier.0.convs.{key[len(head)]}.0.weight" if key.startswith(head) else f"backbone.{key}": value
            for key, value in state.items()
        }
        content, more = {"weights": renamed}, {"TRAIN.HEAD_BIAS": False, "TRAIN.DOMAIN_BN": True}
    torch.save(content, folder / f"{kind}.pth")
    return folder / f"{kind}.pth", {**options, **more}


@pytest.mark.parametrize("kind", ["ADVENT", "DADA", "PLCA"])
def test_published_weights_predict_with_a_cfg(kind, tmp_path, photo):
    path, options = published(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"{kind}.pth holds weights without a configuration; give a YAML file"):
        dada.Segmenter.from_checkpoint(path)
    made = dada.Segmenter.from_checkpoint(path, cfg=options, device="cpu")
    found = made.predict(photo)
    assert found.probabilities.shape == (19, 61, 90) and made.names[10] == "sky"
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)


def test_an_encoder_alone_is_no_trained_network(tmp_path):
    state = build_model("resnet-18", 19).state_dict()
    torch.save({f"Scale.{k}": v for k, v in state.items() if not k.startswith("layer6.")}, tmp_path / "imagenet.pth")
    with pytest.raises(ValueError, match=r"imagenet\.pth holds no trained network: layer6.* give a snapshot"):
        dada.Segmenter.from_checkpoint(
            tmp_path / "imagenet.pth", cfg={"TRAIN.MODEL": "resnet-18", "NUM_CLASSES": 19}, device="cpu"
        )


def test_several_checkpoints_are_an_ensemble(plain, segmenter, photo):
    both = dada.Segmenter.from_checkpoint([plain, plain], device="cpu")
    assert len(both.predictor.networks) == 2 == len(both.sha256)
    np.testing.assert_allclose(both.predict(photo).probabilities, segmenter.predict(photo).probabilities, atol=1e-5)
    with pytest.raises(ValueError, match="at least one checkpoint"):
        dada.Segmenter.from_checkpoint([])
    assert TINY_NETWORK == both.cfg.TRAIN.MODEL
