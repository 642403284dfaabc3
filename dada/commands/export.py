"""A trained network as a file for other programs: ONNX, or torch.export; uint8 images in, classes out.

Everything around the network is inside: resizing to the size that it knows, normalization, the order of the channels, the domain
of its batch norms, bilinear resizing to the size of the image, softmax and argmax. Not included: test options that run a network
several times (flips, scales, windows) and PLCA's aggregation.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada.build import eval_transform
from dada.commands.resampling import Resampling
from dada.dataset import EvalTransform
from dada.files import whole_file
from dada.model import SegmentationModel
from dada.model.batch_norm import TARGET, select_domain
from dada.model.weight_files import read_metadata
from dada.normalization import Normalization
from dada.publishing.release_file import encoder_licence
from dada.runs import versions

if TYPE_CHECKING:
    from dada.segmenter import Segmenter

log = logging.getLogger(__name__)

LAYOUTS = ("NCHW", "NHWC")
OPSET = 17
SMALLEST, LARGEST = 64, 8192  # side of an image that torch.export is told to expect
TOLERANCE = 1e-3  # of probabilities, between PyTorch and what was exported
_STEP = 32  # sides of images are multiples of it, in a torch.export of networks that begin with patches


class Exportable(nn.Module):
    """uint8 RGB images -> (ids, probabilities), and inverse depth from a network that predicts it.

    Args:
        network: in eval mode.
        align_corners: how its maps are resized to the image.
        layout: of the images, "NCHW" or "NHWC".
        resampling: brings images to the size that the network is given; None leaves them as they are.
    """

    def __init__(
        self, network: SegmentationModel, align_corners: bool, layout: str = "NCHW", resampling: Resampling | None = None
    ) -> None:
        super().__init__()
        select_domain(network, TARGET)
        self.network = network
        self.normalization: Normalization = network.normalization
        self.align_corners = align_corners
        self.layout = layout
        self.resampling = resampling

    @property
    def has_one_size(self) -> bool:
        """Whether the network itself sees images of one size only, whatever the size of the input."""
        return self.resampling is not None and not self.resampling.keep_ratio

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) or (B, H, W, 3) uint8 -> ids (B, H, W) uint8, probabilities (B, K, H, W), depth (B, 1, H, W)."""
        if self.layout == "NHWC":
            image = image.permute(0, 3, 1, 2)
        outputs = self.network(self.normalization(image if self.resampling is None else self.resampling(image)))
        probabilities = self._resized(outputs.logits, image).softmax(dim=1)
        found = (probabilities.argmax(dim=1).to(torch.uint8), probabilities)
        return found if outputs.depth is None else (*found, self._resized(outputs.depth, image))

    def _resized(self, x: Tensor, image: Tensor) -> Tensor:
        # As losses.upsample, without a look at whether there is anything to do: sizes are not known here.
        if self.resampling is not None and self.resampling.pad:
            return self.resampling.without_padding(x, image, self.align_corners)
        return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=self.align_corners)


def export(
    segmenter: Segmenter, out: str | Path, *, layout: str = "NCHW", size: tuple[int, int] | None = None, resize: bool = True
) -> dict[str, str]:
    """Write the network to `out`, .onnx or .pt2, once its results agree with PyTorch's.

    Args:
        layout: of the images, one of LAYOUTS.
        size: (width, height) of all images; None: of any, see `sizes` in what is returned. The batch is free in either case.
        resize: images are resized inside as a test resizes them; False leaves that to the caller.

    Returns:
        The metadata in the file, all strings: `classes`, `palette`, `layout`, `sizes`, `resized_inside`, `input_size` (width,
        height), `resampling`, `keep_ratio`, `padded` (to `input_size`, with black), `normalization` (which is always inside),
        `align_corners`, `checkpoint_sha256`, `licence`, `max_abs_difference` of probabilities from PyTorch's, `versions`, and
        `model_card` of a release.

    Raises:
        ImportError: a package is missing; the message says which.
        ValueError: another ending or layout, an ensemble, or a network that cannot be exported for images of any size.
        ArithmeticError: the exported network computes something else.
    """
    out = Path(out)
    _check_request(segmenter, out, layout, size)
    _warn_of_left_out(segmenter)

    network = copy.deepcopy(segmenter.predictor.networks[0]).cpu().to(memory_format=torch.contiguous_format).eval()
    network.requires_grad_(False)
    if network.recompute_blocks is not None:
        network.set_recompute(False)
    transform = eval_transform(segmenter.cfg, network.normalization)
    inside = Resampling(transform) if resize else None
    module = Exportable(network, segmenter.predictor.align_corners, layout, inside).eval()
    metadata = _metadata(segmenter, layout, transform, resize)
    if out.suffix == ".pt2":
        _to_torch_export(module, out, size, metadata)
    else:
        with whole_file(out, ".onnx") as part:
            _to_onnx(module, part, size, metadata)
            _add_metadata(part, metadata)
    return metadata


def _check_request(segmenter: Segmenter, out: Path, layout: str, size: tuple[int, int] | None) -> None:
    """Refuse what `export` cannot do before anything is computed."""
    if out.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"--out is {str(out)!r}, expected a name that ends in .onnx or .pt2 (torch.export)")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected {' or '.join(LAYOUTS)}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is (width, height) in pixels, got {tuple(size)}")
    if len(segmenter.predictor.networks) > 1:
        raise ValueError(f"one network is exported, but this is an ensemble of {len(segmenter.predictor.networks)}")
    if out.suffix == ".onnx":
        require_onnx()


def require_onnx() -> None:
    """Raise ImportError, with what to install, unless ONNX files can be written and run here."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"exporting to ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}; .pt2 needs nothing more"
        )


def _warn_of_left_out(segmenter: Segmenter) -> None:
    test = segmenter.cfg.TEST
    left_out = [f"TEST.{key}" for key in ("FLIP", "SLIDE_CROP", "WITH_AGGREGATION") if test[key]]
    left_out += ["TEST.SCALES"] if tuple(test.SCALES) != (1.0,) else []
    if left_out:
        log.warning("%s: not part of what is exported, a single pass over the whole image", ", ".join(left_out))


def _metadata(segmenter: Segmenter, layout: str, transform: EvalTransform, resized: bool) -> dict[str, str]:
    """All that a file says of itself but for its sizes; `resized` is whether it resizes images itself."""
    said = read_metadata(segmenter.checkpoints[0])
    licence = said.get("encoder_licence") or encoder_licence(segmenter.cfg)
    return {
        "model": segmenter.cfg.TRAIN.MODEL,
        "classes": json.dumps(segmenter.names),
        "palette": json.dumps(segmenter.classes.palette.tolist()),
        "layout": layout,
        "align_corners": str(segmenter.predictor.align_corners),
        "checkpoint_sha256": segmenter.sha256[0],
        "licence": said.get("licence", "not stated"),
        **({"encoder_licence": licence} if licence else {}),
        "versions": json.dumps(versions()),
        **({"model_card": segmenter.card} if segmenter.card else {}),
        "resized_inside": str(resized),
        "input_size": json.dumps(transform.size),
        "resampling": transform.resample,
        "keep_ratio": str(transform.keep_ratio or transform.pad),
        "padded": str(transform.pad),
        "normalization": json.dumps(dataclasses.asdict(transform.normalization)),
    }


# --- torch.export ---------------------------------------------------------------------------------------------


def _to_torch_export(module: Exportable, out: Path, size: tuple[int, int] | None, metadata: dict[str, str]) -> None:
    if module.resampling is not None and module.resampling.keep_ratio:
        raise ValueError(
            "TEST.KEEP_RATIO has every image resized to a size of its own, which torch.export cannot save: give --no-resize, or "
            "write an .onnx"
        )
    _without_ceiling(module)
    free = size is None and not module.has_one_size
    if free and any("Same" in type(part).__name__ for part in module.network.modules()):
        raise ValueError(
            f"{metadata['model']} pads its maps by their size, as networks from TensorFlow do, which torch.export cannot save: "
            "give --size WIDTH HEIGHT, or write an .onnx"
        )
    step = _step(module.network) if free else 1
    height, width = (2, 3) if module.layout == "NCHW" else (1, 2)
    dims: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)}
    if size is None and step == 1:
        dims[height] = torch.export.Dim("height", min=SMALLEST, max=LARGEST)
        dims[width] = torch.export.Dim("width", min=SMALLEST, max=LARGEST)
    elif size is None:
        bounds = {"min": max(2, SMALLEST // step), "max": LARGEST // step}
        dims[height] = step * torch.export.Dim("rows", **bounds)
        dims[width] = step * torch.export.Dim("columns", **bounds)
    examples = _examples(module, size, step)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (examples[0],), dynamic_shapes=(dims,))
    except Exception as error:
        raise ValueError(_no_export(module, size, "torch.export", error)) from error
    metadata["sizes"] = _sizes(size, step, f"from {SMALLEST} to {LARGEST}")
    _check(module, program.module(), examples, metadata)
    with whole_file(out, ".pt2") as part:
        torch.export.save(program, str(part), extra_files={"metadata.json": json.dumps(metadata)})


def _without_ceiling(module: nn.Module) -> None:
    """Replace the pooling of ResNets, which rounds up, by one that torch.export can follow at any size."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if (
                isinstance(child, nn.MaxPool2d)
                and child.ceil_mode
                and (child.kernel_size, child.stride, child.padding) == (3, 2, 1)
            ):
                setattr(parent, name, _CeilPool())


class _CeilPool(nn.Module):
    """MaxPool2d(3, stride=2, padding=1, ceil_mode=True), whose maps begin and end where those of a padding of 2 at the end do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (1, 2, 1, 2), value=-math.inf), 3, 2)


def _step(network: nn.Module) -> int:
    """The number of which image sides must be multiples: torch.export cannot trace how an incomplete patch is handled."""
    patch = getattr(network, "patch", getattr(network, "multiple", 1))
    return math.lcm(_STEP, patch) if patch > 1 else 1


def _sizes(size: tuple[int, int] | None, step: int, bounds: str) -> str:
    if size is not None:
        return f"{size[0]}x{size[1]}"
    return f"any, sides {bounds}" if step == 1 else f"sides that are multiples of {step}, {bounds}"


def _no_export(module: Exportable, size: tuple[int, int] | None, how: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    advice = "" if size else "; --size WIDTH HEIGHT exports it for images of one size, which takes less"
    return f"{how} cannot export this {type(module.network).__name__} ({type(error).__name__}: {reason}){advice}"


# --- ONNX -----------------------------------------------------------------------------------------------------


def _to_onnx(module: Exportable, out: Path, size: tuple[int, int] | None, metadata: dict[str, str]) -> None:
    if size is None and hasattr(module.network, "patch") and not module.has_one_size:
        raise ValueError(
            f"{metadata['model']} resizes its positional embeddings to the image, with a filter that ONNX lacks: give --size "
            "WIDTH HEIGHT, or write a .pt2"
        )
    examples = _examples(module, size)
    names = ["ids", "probabilities", *(["depth"] if getattr(module.network, "predicts_depth", False) else [])]
    high, wide = (2, 3) if module.layout == "NCHW" else (1, 2)
    free = {0: "batch"} if size else {0: "batch", high: "height", wide: "width"}
    maps = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    axes = {"image": free, **dict.fromkeys(names[1:], maps)}
    axes["ids"] = {0: "batch"} if size else {0: "batch", 1: "height", 2: "width"}
    # The exporter that traces: it needs no further package, and follows sizes through Python's arithmetic.
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    try:
        with torch.no_grad(), warnings.catch_warnings(), _fixed_positions(module, examples[0]):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (examples[0],),
                str(out),
                input_names=["image"],
                output_names=names,
                dynamic_axes=axes,
                opset_version=OPSET,
                **tracing,
            )
    except Exception as error:
        raise ValueError(_no_export(module, size, "torch.onnx", error)) from error
    metadata["sizes"] = _sizes(size, 1, "of any length")
    _check(module, _onnx_run(out), examples, metadata)


@contextmanager
def _fixed_positions(module: Exportable, example: Tensor) -> Iterator[None]:
    """In the block, a vision transformer takes its positional embeddings for images like `example` as they are."""
    if not hasattr(module.network, "patch"):
        yield
        return
    from timm.models import eva, vision_transformer

    def patched(replacement: Callable | None) -> None:
        for file in (vision_transformer, eva):
            file.resample_abs_pos_embed = replacement or original

    original, found = vision_transformer.resample_abs_pos_embed, []

    def record(*args: Any, **options: Any) -> Tensor:
        found.append(original(*args, **options))
        return found[-1]

    try:
        patched(record)
        module(example)
        if found:
            patched(lambda *args, **options: found[0])
        yield
    finally:
        patched(None)


def _onnx_run(path: Path) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})]


def _add_metadata(path: Path, metadata: dict[str, str]) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, metadata)
    for output in model.graph.output:  # which the exporter names after its last operation
        if output.name != "ids":
            channels = len(json.loads(metadata["classes"])) if output.name == "probabilities" else 1
            output.type.tensor_type.shape.dim[1].dim_value = channels
    onnx.save(model, str(path))


# --- parity ---------------------------------------------------------------------------------------------------


def _examples(module: Exportable, size: tuple[int, int] | None, step: int = 1) -> list[Tensor]:
    """Pictures of smooth noise; the first is the one that is exported with."""
    sizes = [size[::-1]] * 2 if size else [(102, 134), (97, 161)] if step == 1 else [(4 * step, 6 * step), (5 * step, 3 * step)]
    generator = torch.Generator().manual_seed(0)
    images = []
    for batch, (height, width) in zip((2, 1), sizes):
        noise = torch.rand(batch, 3, max(height // 8, 2), max(width // 8, 2), generator=generator)
        image = (255 * F.interpolate(noise, size=(height, width), mode="bilinear")).round().to(torch.uint8)
        images.append(image if module.layout == "NCHW" else image.permute(0, 2, 3, 1).contiguous())
    return images


def _check(
    module: Exportable, run: Callable[[Tensor], Sequence[Tensor]], images: Sequence[Tensor], metadata: dict[str, str]
) -> None:
    """Put the largest difference of a probability into the metadata, or refuse the export."""
    largest, others, pixels = 0.0, 0, 0
    for image in images:
        with torch.no_grad():
            own, other = module(image), run(image)
        largest = max(largest, (own[1] - other[1]).abs().max().item())
        others += int((own[0] != other[0]).sum())
        pixels += own[0].numel()
        if len(own) > 2 and not torch.allclose(own[2], other[2], rtol=1e-3, atol=1e-3 * own[2].abs().max().item()):
            raise ArithmeticError("depth of the exported network is not that of PyTorch: do not use this export")
    if not largest <= TOLERANCE:
        raise ArithmeticError(
            f"probabilities of the exported network are up to {largest:.2g} from those of PyTorch (expected at most "
            f"{TOLERANCE}), {others / pixels:.2%} of the classes differ; nothing is written"
        )
    metadata["max_abs_difference"] = f"{largest:.3g}"
