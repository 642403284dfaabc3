"""Exported networks: what ONNX Runtime and torch.export compute is what PyTorch does, and the file says what it is."""

import builtins
import copy
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY_NETWORK, TinyNetwork, untrained_snapshot
from torch import nn
from torch.nn import functional as F

import dada
from dada.build import eval_loader
from dada.commands import export as export_module
from dada.commands.export import Exportable, export
from dada.commands.resampling import Resampling
from dada.dataset import EvalTransform
from dada.evaluation.evaluator import evaluate
from dada.evaluation.metrics import confusion_matrix, iou, mean_iou
from dada.model import MODELS, build_model
from dada.model.batch_norm import SOURCE, select_domain
from dada.normalization import CAFFE_BGR

with_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")), reason="needs onnx and onnxruntime"
)


@pytest.fixture(scope="module")
def segmenter(city, tmp_path_factory):
    return dada.Segmenter.from_checkpoint(untrained_snapshot(tmp_path_factory.mktemp("snapshot"), city), device="cpu")


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth(batch: int, height: int, width: int) -> np.ndarray:
    """(batch, 3, height, width) like photographs, in which a pixel tells something of its neighbours."""
    parts = [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in pictures(batch, 6, 9, 3)]
    return np.stack([np.asarray(part).transpose(2, 0, 1) for part in parts])


def session_of(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@with_onnx
def test_the_script_writes_onnx_that_predicts_images_of_any_number_and_size(segmenter, tmp_path, capsys, run_script):
    out = tmp_path / "model.onnx"
    run_script("export.py", "--checkpoint", segmenter.checkpoints[0], "--out", out)
    printed = capsys.readouterr().out
    session = session_of(out)
    for batch, height, width in ((1, 64, 96), (3, 65, 97), (2, 40, 131)):
        images = smooth(batch, height, width)
        ids, probabilities = session.run(None, {"image": images})
        for k in range(batch):
            wanted = segmenter.predict(torch.from_numpy(images[k]))
            off = np.abs(probabilities[k] - wanted.probabilities)  # by a grey level here and there
            assert np.quantile(off, 0.999) < 0.01 and off.max() < 0.05
            assert ids.dtype == np.uint8 and (ids[k] == wanted.ids).mean() > 0.99
    assert len(np.unique(ids)) > 1, "a map of one class would agree with anything"

    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list(segmenter.names) and said["sizes"] == "any, sides of any length"
    assert json.loads(said["palette"])[0] == [128, 64, 128] and said["checkpoint_sha256"] == segmenter.sha256[0]
    assert float(said["max_abs_difference"]) < 1e-5 and f"max_abs_difference: {said['max_abs_difference']}" in printed
    assert said["licence"] == "not stated" and said["layout"] == "NCHW" and not list(tmp_path.glob(".*"))
    assert said["resized_inside"] == "True" and json.loads(said["input_size"]) == [128, 64]
    assert (said["resampling"], said["keep_ratio"]) == ("bicubic", "False")
    assert json.loads(said["normalization"])["order"] == "RGB" and len(json.loads(said["normalization"])["mean"]) == 3
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[1].shape == ["batch", 16, "height", "width"]


def example() -> str:
    """The block of Python on the page that runs an exported file without this project."""
    page = (Path(__file__).parent.parent / "docs" / "prediction.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    return block


@with_onnx
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"TEST.KEEP_RATIO": True}, marks=pytest.mark.slow),
        {  # whose images may have any shape, and so are padded
            "TARGET": "Folder",
            "FOLDER_TARGET.IMAGES": "leftImg8bit/{split}/*/*_leftImg8bit.png",
            "FOLDER_TARGET.LABELS": "gtFine/{split}/*/*_gtFine_labelIds.png",
            "FOLDER_TARGET.LABEL_MAP": "cityscapes",
        },
    ],
    ids=["squashed", "ratio kept", "padded"],
)
def test_the_example_of_the_page_alone_gives_the_scores_of_a_test(options, segmenter, tmp_path):
    options = {"TEST.INPUT_SIZE_TARGET": [112, 48], **options}
    made = dada.Segmenter.from_checkpoint(segmenter.checkpoints[0], device="cpu", options=options)
    export(made, tmp_path / "model.onnx")
    loader = eval_loader(made.cfg, made.predictor.networks[0].normalization)
    tested = evaluate(made.predictor, loader, made.classes, torch.device("cpu"), made.cfg.TEST.CLASS_RULE)

    def only_these(name, *args, **options):
        assert name.split(".")[0] in ("json", "numpy", "onnxruntime", "PIL"), f"{name} is not among what the page names"
        return __import__(name, *args, **options)

    counts = torch.zeros_like(torch.as_tensor(tested.confusion))
    for k, item in enumerate(loader.dataset.items):
        code = (
            example().replace("experiments/demo/model.onnx", str(tmp_path / "model.onnx")).replace("street.png", str(item.image))
        )
        found = {"__builtins__": {**vars(builtins), "__import__": only_these, "print": lambda *_: None}}
        exec(code, found)
        _, height, width = found["ids"].shape
        label = loader.dataset[k].label[None, :height, :width]  # without padding
        counts += confusion_matrix(label, found["ids"], made.cfg.NUM_CLASSES)
    assert mean_iou(iou(counts)) == pytest.approx(tested.miou, abs=0.001)
    assert (counts - torch.as_tensor(tested.confusion)).abs().sum() < 0.001 * counts.sum()


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "bilinear_aliased"])
@pytest.mark.parametrize("options", [{}, {"keep_ratio": True}, {"pad": True}], ids=str)
def test_images_are_resized_inside_as_in_a_test(resample, options):
    for width, height in ((200, 131), (96, 64), (40, 33), (70, 201)):
        picture = Image.fromarray(pictures(height, width, 3))
        if width < height:  # where Pillow may go down first, which hard edges show
            picture = Image.fromarray(pictures(9, 5, 3)).resize((width, height), Image.Resampling.BICUBIC)
        transform = EvalTransform(lambda x: x.float(), (96, 64), resample, **options)
        wanted = transform(picture).image
        found = Resampling(transform)(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])[0]
        off = (found - wanted).abs()
        assert found.shape == wanted.shape and off.max() <= 1
        assert off.mean() < (0.03 if width > height else 0.3)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(64, 48), (50, 200), (96, 64)])
def test_scores_of_a_padded_image_are_cut_to_the_image(size, align_corners):
    transform = EvalTransform(lambda x: x.float(), (96, 64), pad=True)
    (width, height), image = size, torch.zeros(1, 3, size[1], size[0], dtype=torch.uint8)
    views = transform(Image.new("RGB", size), Image.new("L", size))
    maps = torch.rand(1, 5, 16, 24, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(maps, size=views.label.shape, mode="bilinear", align_corners=align_corners)[..., :height, :width]
    found = Resampling(transform).without_padding(maps, image, align_corners)
    assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-5


@with_onnx
@pytest.mark.parametrize("align_corners", [True, False])
def test_channels_last_caffe_images_depth_and_batch_norms_of_the_target_are_inside(align_corners, segmenter, city, tmp_path):
    options = ["TRAIN.DOMAIN_BN=True", "USE_DEPTH=True", "TRAIN.IMG_MODE=BGR", f"ALIGN_CORNERS={align_corners}"]
    made = dada.Segmenter.from_checkpoint(untrained_snapshot(tmp_path, city, *options), device="cpu")
    network = made.predictor.networks[0]
    assert network.normalization == CAFFE_BGR
    for name, value in network.state_dict().items():
        if "norm_layers.1.running_mean" in name:
            value += 0.3  # the target is another domain
    select_domain(network, SOURCE)  # whatever it was last used for
    export(made, tmp_path / "model.onnx", layout="NHWC", resize=False)
    image = pictures(1, 50, 70, 3)
    ids, probabilities, depth = session_of(tmp_path / "model.onnx").run(None, {"image": image})
    wanted = made.predict(image[0], size=(70, 50))  # selects the target by itself
    np.testing.assert_allclose(probabilities[0], wanted.probabilities, atol=1e-5)
    with torch.no_grad():
        raw = network(network.normalization(torch.from_numpy(image).permute(0, 3, 1, 2))).depth
    resized = torch.nn.functional.interpolate(raw, size=(50, 70), mode="bilinear", align_corners=align_corners)
    np.testing.assert_allclose(depth, resized.numpy(), rtol=1e-3, atol=1e-5 * float(raw.abs().max()))


@with_onnx
@pytest.mark.parametrize("name", ["resnet-18", "timm:convnext_atto"])
def test_other_networks_are_exported_for_sizes_that_do_not_fit_their_strides(name, tmp_path):
    torch.manual_seed(0)
    network = build_model(name, 5, output_stride=32).eval()
    module = Exportable(network, True).eval()
    said = {"model": name}
    export_module._to_onnx(module, tmp_path / "model.onnx", None, said)
    image = torch.from_numpy(pictures(1, 3, 67, 93))
    with torch.no_grad():
        wanted = module(image)[1]
    np.testing.assert_allclose(session_of(tmp_path / "model.onnx").run(None, {"image": image.numpy()})[1], wanted, atol=1e-4)
    assert float(said["max_abs_difference"]) < 1e-3


@with_onnx
def test_a_vision_transformer_is_exported_for_the_size_it_sees_which_resizing_makes_any(city, tmp_path):
    path = untrained_snapshot(tmp_path, city, "TRAIN.MODEL=timm:test_vit")
    made = dada.Segmenter.from_checkpoint(path, device="cpu")
    with pytest.raises(ValueError, match="resizes its positional embeddings .* give --size WIDTH HEIGHT, or write a .pt2"):
        export(made, tmp_path / "model.onnx", resize=False)
    before = copy.deepcopy(made.cfg)
    said = export(made, tmp_path / "model.onnx", size=(80, 50), resize=False)
    assert made.cfg == before
    images = smooth(2, 50, 80)
    found = session_of(tmp_path / "model.onnx").run(None, {"image": images})[1]
    for k in range(2):
        np.testing.assert_allclose(found[k], made.predict(torch.from_numpy(images[k]), size=(80, 50)).probabilities, atol=1e-4)
    assert said["sizes"] == "80x50" and said["resized_inside"] == "False"
    assert export(made, tmp_path / "model.onnx")["sizes"] == "any, sides of any length"
    found = session_of(tmp_path / "model.onnx").run(None, {"image": images})[1]
    np.testing.assert_allclose(found[1], made.predict(torch.from_numpy(images[1])).probabilities, atol=0.01)


class Plain(TinyNetwork):
    normalization = CAFFE_BGR


def test_torch_export_of_a_plain_network_takes_any_number_and_size_of_images(tmp_path):
    module, said = Exportable(Plain(5, depth=True).eval(), False, "NHWC").eval(), {}
    export_module._to_torch_export(module, tmp_path / "model.pt2", None, said)
    kept = {"metadata.json": ""}
    run = torch.export.load(str(tmp_path / "model.pt2"), extra_files=kept).module()
    assert json.loads(kept["metadata.json"]) == said and said["sizes"] == "any, sides from 64 to 8192"
    for shape in ((3, 71, 90), (1, 130, 64)):
        image = torch.from_numpy(pictures(*shape, 3))
        with torch.no_grad():
            for found, wanted in zip(run(image), module(image), strict=True):
                torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(90, 71), None])
def test_torch_export_takes_any_number_of_images_and_any_size_unless_given(size, segmenter, tmp_path):
    said = export(segmenter, tmp_path / "model.pt2", size=size)
    kept = {"metadata.json": ""}
    run = torch.export.load(str(tmp_path / "model.pt2"), extra_files=kept).module()
    assert json.loads(kept["metadata.json"]) == said and float(said["max_abs_difference"]) < 1e-5
    images = torch.from_numpy(smooth(3, 71, 90))
    ids, probabilities = run(images)
    for k in range(3):
        wanted = segmenter.predict(images[k])
        np.testing.assert_allclose(probabilities[k], wanted.probabilities, atol=0.01)
        assert (ids[k].numpy() == wanted.ids).mean() > 0.99


@pytest.mark.parametrize("size", [(64, 64), (65, 66), (67, 68), (71, 70)])
def test_the_pooling_of_resnets_is_the_same_where_torch_export_can_follow_it(size):
    network = nn.Sequential(build_model("resnet-18", 3).maxpool)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    wanted = network(x)
    export_module._without_ceiling(network)
    assert not isinstance(network[0], nn.MaxPool2d) and torch.equal(network(x), wanted)


def test_torch_export_says_what_it_cannot_do_with_images_that_keep_their_shape(segmenter, tmp_path):
    made = dada.Segmenter.from_checkpoint(segmenter.checkpoints[0], device="cpu", options={"TEST.KEEP_RATIO": True})
    with pytest.raises(ValueError, match="TEST.KEEP_RATIO .* give --no-resize, or write an .onnx"):
        export(made, tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size, sizes",
    [
        ("resnet-18", None, "any, sides from 64 to 8192"),
        ("DeepLabv2", None, "any, sides from 64 to 8192"),
        ("vit_tiny_patch16_224", None, "sides that are multiples of 32, from 64 to 8192"),
        ("tf_efficientnet_lite0", (160, 96), "160x96"),
    ],
)
def test_torch_export_of_patching_and_padding_networks(name, size, sizes, tmp_path):
    name = name if name in MODELS else f"timm:{name}"
    module, said = Exportable(build_model(name, 5).eval(), False).eval(), {}
    export_module._to_torch_export(module, tmp_path / "model.pt2", size, said)
    assert said["sizes"] == sizes
    run = torch.export.load(str(tmp_path / "model.pt2")).module()
    image = torch.from_numpy(pictures(1, 3, 96, 160))
    with torch.no_grad():
        torch.testing.assert_close(run(image)[1], module(image)[1])


def test_a_network_that_pads_by_size_asks_for_one_in_torch_export(tmp_path):
    module = Exportable(build_model("timm:tf_efficientnet_lite0", 5).eval(), False).eval()
    with pytest.raises(ValueError, match="lite0 pads its maps by their size.* give --size WIDTH HEIGHT, or write an .onnx"):
        export_module._to_torch_export(module, tmp_path / "model.pt2", None, {"model": "timm:tf_efficientnet_lite0"})


def test_what_cannot_be_exported_is_refused(segmenter, tmp_path, monkeypatch):
    for options, message in (
        ({"out": "model.pth"}, r"expected a name that ends in .onnx or .pt2"),
        ({"layout": "CHWN"}, "layout is 'CHWN', expected NCHW or NHWC"),
        ({"size": (0, 5)}, r"size is \(width, height\) in pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            export(segmenter, tmp_path / options.pop("out", "model.pt2"), **options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs onnx and onnxruntime: pip install onnx onnxruntime"):
        export(segmenter, tmp_path / "model.onnx")
    both = dada.Segmenter.from_checkpoint([segmenter.checkpoints[0]] * 2, device="cpu")
    with pytest.raises(ValueError, match="this is an ensemble of 2"):
        export(both, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_written(segmenter):
    network = segmenter.predictor.networks[0]
    module = Exportable(network, True).eval()
    images = export_module._examples(module, None)
    with pytest.raises(ArithmeticError, match="up to .* from those of PyTorch .* nothing is written"):
        export_module._check(module, lambda image: [x.roll(1, 1) for x in module(image)], images, {})


def test_options_of_a_test_that_are_left_out_are_named(segmenter, caplog):
    made = dada.Segmenter.from_checkpoint(
        segmenter.checkpoints[0], device="cpu", options={"TEST.FLIP": True, "TEST.SCALES": [0.5, 1.0]}
    )
    export_module._warn_of_left_out(made)
    assert "TEST.FLIP, TEST.SCALES: not part of what is exported" in caplog.text and TINY_NETWORK == made.cfg.TRAIN.MODEL
