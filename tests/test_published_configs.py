"""The YAML files of ADVENT, DADA and the fork: they load, train and test as they are, from folders laid out as theirs.

What each file sets is stated below as facts; only sizes, numbers of iterations and, where a file names no folder, the
folders of the data are set beside it.
"""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dada.config import KEYS_OF_OTHERS, ConfigError, cfg, cfg_from_file, cfg_from_list, flat_options, plain_cfg
from dada.dataset.mapillary import NAMES_OF_V1_2
from dada.domain_adaptation import adversarial
from dada.evaluation.tester import evaluate_run as run_test
from dada.label_sets import cityscapes_id_map, label_set
from dada.model import DeepLabV2, resnet
from dada.model import registry as build_module
from dada.model.discriminator import FCDiscriminator
from dada.runs import run_of
from dada.training.loop import train

WEIGHTS = "../../pretrained_models/"
IMAGENET = WEIGHTS + "DeepLab_resnet_pretrained_imagenet.pth"
SYNTHIA = {"SOURCE": "SYNTHIA", "TARGET": "Cityscapes", "NUM_WORKERS": 4}
GTA = {"SOURCE": "GTA", "TARGET": "Cityscapes", "NUM_WORKERS": 4}
INFO = "../dataset/mapillary_list/info.json"


def synthia(name: str, *, depth: bool, train: dict | None = None, test: dict, **more) -> dict:
    start = {"RESTORE_FROM": IMAGENET, **train} if train else None
    sections = {"TRAIN": start, "TEST": test} if start else {"TEST": test}
    return {"EXP_NAME": f"SYNTHIA2Cityscapes_DeepLabv2_{name}", **SYNTHIA, "USE_DEPTH": depth, **more, **sections}


def mapillary(name: str, *, depth: bool, train: dict | None = None, test: dict) -> dict:
    size = {"INFO_TARGET": INFO, "INPUT_SIZE_TARGET": [1024, 768]}
    sections = {"TEST": {**size, "SET_TARGET": "validation", **test}}
    if train:
        sections["TRAIN"] = {"RESTORE_FROM": IMAGENET, **size, **train}
    return {
        "EXP_NAME": f"SYNTHIA2Mapillary_DeepLabv2_{name}_7classes",
        **SYNTHIA,
        "TARGET": "Mapillary",
        "NUM_CLASSES": 7,
        "DATA_LIST_TARGET": "../dataset/mapillary_list/{}.txt",
        "DATA_DIRECTORY_TARGET": "../../data/Mapillary",
        "USE_DEPTH": depth,
        **sections,
    }


def single(*names: str, **more) -> dict:
    return {"MODE": "single", "RESTORE_FROM": [WEIGHTS + name for name in names], **more}


ADVENT_ON_SYNTHIA = {"DA_METHOD": "AdvEnt", "MODEL": "DeepLabv2"}
DADA = {"DA_METHOD": "DADA", "MODEL": "DeepLabv2_depth"}
BEST = {"MODE": "best"}

TRAINED = {
    "DADA and fork, s2c/advent": synthia("AdvEnt", depth=False, train=ADVENT_ON_SYNTHIA, test={**BEST, "MODEL": ["DeepLabv2"]}),
    "DADA, s2c/dada": synthia("DADA", depth=True, train=DADA, test=BEST),
    "fork, s2c/dada": synthia(
        "DADA_Contrastive",
        depth=False,
        train={**DADA, "MODEL": "DeepLabv2"},
        test=BEST,
        DATA_DIRECTORY_SOURCE="../../data/Synthia/RAND_CITYSCAPES",
        DATA_DIRECTORY_TARGET="../../data/Cityscapes",
    ),
    "DADA and fork, s2m/advent": mapillary("AdvEnt", depth=False, train=ADVENT_ON_SYNTHIA, test={**BEST, "MODEL": ["DeepLabv2"]}),
    "DADA and fork, s2m/dada": mapillary("DADA", depth=True, train=DADA, test=BEST),
    "ADVENT, advent": {
        **GTA,
        "TRAIN": {
            "DA_METHOD": "AdvEnt",
            "MULTI_LEVEL": True,
            "LAMBDA_ADV_MAIN": 0.001,
            "LAMBDA_ADV_AUX": 0.0002,
            "RESTORE_FROM": IMAGENET,
        },
        "TEST": BEST,
    },
    "ADVENT, minent": {
        **GTA,
        "TRAIN": {
            "DA_METHOD": "MinEnt",
            "MULTI_LEVEL": True,
            "LAMBDA_ENT_MAIN": 0.001,
            "LAMBDA_ENT_AUX": 0.0002,
            "RESTORE_FROM": IMAGENET,
        },
        "TEST": BEST,
    },
}
TESTED = {  # file: what it sets, whose defaults it counts on
    "s2c/dada_pretrained": (synthia("DADA", depth=True, test=single("synthia2cityscapes_dada.pth")), "dada"),
    "s2c/dada_cyclegan_pretrained": (
        synthia("DADA_CycleGAN", depth=True, test=single("synthia2cityscapes_dada_cyclegan.pth")),
        "dada",
    ),
    "s2m/dada_pretrained": (mapillary("DADA", depth=True, test=single("synthia2mapillary_dada.pth")), "dada"),
    "fork, s2c/dada_test": (synthia("DADA", depth=True, test=single("model_90000.pth")), "dada"),
    "advent_pretrained": ({**GTA, "TEST": single("gta2cityscapes_advent.pth")}, "advent"),
    "advent_cyclegan_pretrained": ({**GTA, "TEST": single("gta2cityscapes_advent_cyclegan.pth")}, "advent"),
    "minent_pretrained": ({**GTA, "TEST": single("gta2cityscapes_minent_ER.pth")}, "advent"),
    "advent+minent_pretrained": (
        {
            **GTA,
            "TEST": single(
                "gta2cityscapes_advent.pth",
                "gta2cityscapes_minent_ER.pth",
                MODEL=["DeepLabv2", "DeepLabv2"],
                MULTI_LEVEL=[True, True],
                MODEL_WEIGHT=[0.5, 0.5],
            ),
        },
        "advent",
    ),
}

# Every key of the global configuration of ADVENT, DADA and its fork.
KEYS = [
    "SOURCE",
    "TARGET",
    "NUM_WORKERS",
    "DATA_LIST_SOURCE",
    "DATA_LIST_TARGET",
    "DATA_DIRECTORY_SOURCE",
    "DATA_DIRECTORY_TARGET",
    "NUM_CLASSES",
    "USE_DEPTH",
    "CONTRASTIVE_LEARNING",
    "EXP_NAME",
    "EXP_ROOT",
    "EXP_ROOT_SNAPSHOT",
    "EXP_ROOT_LOGS",
    "GPU_ID",
    "TRAIN.SET_SOURCE",
    "TRAIN.SET_TARGET",
    "TRAIN.BATCH_SIZE_SOURCE",
    "TRAIN.BATCH_SIZE_TARGET",
    "TRAIN.IGNORE_LABEL",
    "TRAIN.INPUT_SIZE_SOURCE",
    "TRAIN.INPUT_SIZE_TARGET",
    "TRAIN.INFO_SOURCE",
    "TRAIN.INFO_TARGET",
    "TRAIN.MODEL",
    "TRAIN.MULTI_LEVEL",
    "TRAIN.RESTORE_FROM",
    "TRAIN.IMG_MEAN",
    "TRAIN.LEARNING_RATE",
    "TRAIN.MOMENTUM",
    "TRAIN.WEIGHT_DECAY",
    "TRAIN.POWER",
    "TRAIN.LAMBDA_SEG_MAIN",
    "TRAIN.LAMBDA_SEG_AUX",
    "TRAIN.LAMBDA_LOVASZ",
    "TRAIN.LAMBDA_DEPTH_MAIN",
    "TRAIN.LAMBDA_CONTRASTIVE_MAIN",
    "TRAIN.DA_METHOD",
    "TRAIN.LEARNING_RATE_D",
    "TRAIN.LAMBDA_ADV_MAIN",
    "TRAIN.LAMBDA_ADV_AUX",
    "TRAIN.LAMBDA_ENT_MAIN",
    "TRAIN.LAMBDA_ENT_AUX",
    "TRAIN.MAX_ITERS",
    "TRAIN.EARLY_STOP",
    "TRAIN.SAVE_PRED_EVERY",
    "TRAIN.SNAPSHOT_DIR",
    "TRAIN.RANDOM_SEED",
    "TRAIN.TENSORBOARD_LOGDIR",
    "TRAIN.TENSORBOARD_VIZRATE",
    "TEST.MODE",
    "TEST.MODEL",
    "TEST.MODEL_WEIGHT",
    "TEST.MULTI_LEVEL",
    "TEST.IMG_MEAN",
    "TEST.RESTORE_FROM",
    "TEST.SNAPSHOT_DIR",
    "TEST.SNAPSHOT_STEP",
    "TEST.SNAPSHOT_MAXITER",
    "TEST.SET_TARGET",
    "TEST.BATCH_SIZE_TARGET",
    "TEST.INPUT_SIZE_TARGET",
    "TEST.OUTPUT_SIZE_TARGET",
    "TEST.INFO_TARGET",
    "TEST.WAIT_MODEL",
]


@pytest.fixture(scope="module")
def data(city, tmp_path_factory):
    """`data/` as ADVENT and DADA lay it out, of the toy city: SYNTHIA, GTA5, Cityscapes and Mapillary Vistas."""
    root = tmp_path_factory.mktemp("published") / "data"
    (root / "Synthia").mkdir(parents=True)
    (root / "Synthia/RAND_CITYSCAPES").symlink_to(city / "SYNTHIA")
    (root / "SYNTHIA").symlink_to(city / "SYNTHIA")
    (root / "Cityscapes").symlink_to(city / "Cityscapes")
    names = {"light": "traffic-light", "sign": "traffic-sign--front", "person": "human--person", "rider": "human--rider"}
    ids = np.full(256, NAMES_OF_V1_2.index("void--unlabeled"), dtype=np.uint8)
    for file_id, train_id in enumerate(cityscapes_id_map(19).tolist()):
        if train_id < 19:
            name = label_set(19).names[train_id]
            fitting = [k for k, known in enumerate(NAMES_OF_V1_2) if names.get(name, f"--{name}") in known]
            ids[file_id] = fitting[0] if fitting else ids[255]
    for split, folder in (("train", "train"), ("val", "validation")):
        for number, path in enumerate(sorted((city / "Cityscapes/leftImg8bit" / split).glob("*/*.png"))):
            label = city / "Cityscapes/gtFine" / split / path.parent.name / path.name.replace("leftImg8bit", "gtFine_labelIds")
            picture = Image.open(path).convert("RGB")
            save(picture.resize((120, 80)), root / "Mapillary" / folder / f"images/{number}.jpg")
            mapped = Image.fromarray(ids[np.array(Image.open(label))]).resize((120, 80), Image.Resampling.NEAREST)
            save(mapped, root / "Mapillary" / folder / f"labels/{number}.png")
            if split == "train":
                save(picture, root / f"GTA5/images/{number:05}.png")
                save(Image.open(label), root / f"GTA5/labels/{number:05}.png")
    return root


def save(image: Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def scripts(data, tmp_path, monkeypatch):
    """The working folder of their scripts, `<repository>/dada/scripts`, with data and weights beside them."""
    root = tmp_path / "repository"
    folder = root / "dada/scripts"
    folder.mkdir(parents=True)
    (root / "data").symlink_to(data)
    (root / "pretrained_models").mkdir()
    lists = root / "dada/dataset/mapillary_list"
    lists.mkdir(parents=True)
    for split in ("train", "validation"):
        images = sorted(p.name for p in (data / "Mapillary" / split / "images").iterdir())
        (lists / f"{split}.txt").write_text("\n".join(images) + "\n")
    info = {"labels": [{"name": name, "readable": name.replace("--", " ")} for name in NAMES_OF_V1_2]}
    (lists / "info.json").write_text(json.dumps(info))
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(root)  # weights and snapshots are large


def write(folder, values: dict, name: str = "theirs.yml"):
    path = folder / name
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def small() -> None:
    """Sizes and lengths for a test, and the folders of those files that count on their repository's defaults."""
    if cfg.DATA_DIRECTORY_SOURCE == "data/SYNTHIA":
        cfg_from_list([f"DATA_DIRECTORY_SOURCE=../../data/{'GTA5' if cfg.SOURCE.startswith('GTA') else 'SYNTHIA'}"])
    if cfg.DATA_DIRECTORY_TARGET == "data/Cityscapes":
        cfg_from_list(["DATA_DIRECTORY_TARGET=../../data/Cityscapes"])
    cfg_from_list(
        [
            "NUM_WORKERS=0",
            "GPU_ID=-1",
            "TRAIN.INPUT_SIZE_SOURCE=[64, 32]",
            "TRAIN.INPUT_SIZE_TARGET=[64, 48]",
            "TRAIN.MAX_ITERS=1",
            "TRAIN.BATCH_SIZE_SOURCE=2",
            "TRAIN.BATCH_SIZE_TARGET=2",
            "TEST.INPUT_SIZE_TARGET=[64, 48]",
            "TEST.OUTPUT_SIZE_TARGET=[128, 64]",
        ]
    )


class Thin(resnet.Bottleneck):
    """A bottleneck of ResNet-101's names with as many channels at its ends as a basic block, and few in the middle."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, *options) -> None:
        self.expansion = 16
        super().__init__(in_channels, planes // 16, *options)


@pytest.fixture
def shallow(monkeypatch):
    """A ResNet of one thin block a stage in place of ResNet-101, and a small discriminator: the same code, names and files."""
    depth = 14
    monkeypatch.setitem(resnet.ARCHITECTURES, depth, (Thin, (1, 1, 1, 1)))
    monkeypatch.setattr(adversarial, "FCDiscriminator", partial(FCDiscriminator, ndf=4))
    for name in ("DeepLabv2", "DeepLabv2_depth"):
        monkeypatch.setitem(build_module.MODELS, name, partial(DeepLabV2, depth=depth))
    return depth


def write_imagenet(depth: int) -> None:
    """The file that ADVENT and DADA start from, with the fully connected layer that they call layer5."""
    trunk = DeepLabV2(2, depth=depth).state_dict()
    state = {f"Scale.{key}": value for key, value in trunk.items() if not key.startswith("layer6.")}
    state.update({"Scale.layer5.weight": torch.zeros(1000, 8), "Scale.layer5.bias": torch.zeros(1000)})
    torch.save(state, IMAGENET)


@pytest.mark.parametrize("values", [*TRAINED.values(), *(v for v, _ in TESTED.values())], ids=[*TRAINED, *TESTED])
def test_every_value_of_the_file_arrives(values, tmp_path):
    cfg_from_file(write(tmp_path, values))

    def check(given: dict, held: dict) -> None:
        for key, value in given.items():
            check(value, held[key]) if isinstance(value, dict) else None
            assert isinstance(value, dict) or held[key] == value, key

    check(values, plain_cfg(cfg))


def train_and_test(values: dict, folder, depth: int) -> None:
    cfg_from_file(write(folder, values))
    small()
    write_imagenet(depth)
    start = torch.load(IMAGENET, weights_only=True)["Scale.layer4.0.conv1.weight"]
    run = run_of(cfg)
    network = train(cfg, run)
    moved = (network.state_dict()["layer4.0.conv1.weight"] - start).abs().max()
    assert 0 < moved < 0.1, "training started from the file, and moved the network"
    assert (run.snapshots / "model_1.pth").is_file()
    evaluation = run_test(cfg, run)["model_1"]
    assert 0 <= evaluation.miou <= 1 and evaluation.classes.num_classes == cfg.NUM_CLASSES


@pytest.mark.parametrize("values", TRAINED.values(), ids=TRAINED)
def test_the_file_trains_and_tests(values, scripts, shallow):
    train_and_test(values, scripts, shallow)


@pytest.mark.parametrize("name, whose, count", [("ADVENT, advent", "advent", 19), ("DADA and fork, s2m/dada", "dada", 7)])
def test_over_the_defaults_of_its_repository_the_file_trains_as_that_repository_did(name, whose, count, scripts, shallow):
    cfg_from_file(f"defaults_{whose}.yml")
    train_and_test(TRAINED[name], scripts, shallow)
    assert count == cfg.NUM_CLASSES and cfg.LEGACY.DUPLICATE_STEPS and cfg.TRAIN.BN_POLICY == "frozen_affine"


@pytest.mark.slow
@pytest.mark.parametrize("values", TRAINED.values(), ids=TRAINED)
def test_the_file_trains_and_tests_on_resnet_101(values, scripts):
    train_and_test(values, scripts, 101)


@pytest.mark.parametrize("values, whose", TESTED.values(), ids=TESTED)
def test_the_file_of_a_published_network_tests_it_over_the_defaults_of_its_repository(values, whose, scripts, shallow):
    cfg_from_file(f"defaults_{whose}.yml")
    cfg_from_file(write(scripts, values))
    small()
    count = values.get("NUM_CLASSES", {"advent": 19, "dada": 16}[whose])
    assert count == cfg.NUM_CLASSES
    for path in cfg.TEST.RESTORE_FROM:
        state = DeepLabV2(count, depth=shallow, multi_level=whose == "advent", with_depth=whose == "dada").state_dict()
        # As torch 0.4 to 1.2 wrote it; the fork's snapshots have the iteration beside the weights.
        content = {"state_dict": state, "iter": 90000} if "model_" in path else state
        torch.save(content, path, _use_new_zipfile_serialization=False)
    (evaluation,) = run_test(cfg, run_of(cfg)).values()
    assert evaluation.classes.num_classes == count and evaluation.confusion.sum() > 0


def test_a_published_network_without_its_defaults_is_refused_with_the_options_to_set(scripts, shallow):
    values, _ = TESTED["advent_pretrained"]
    cfg_from_file(write(scripts, values))
    small()
    state = DeepLabV2(16, depth=shallow, multi_level=True).state_dict()
    torch.save(state, cfg.TEST.RESTORE_FROM[0])
    with pytest.raises(ValueError, match="has an auxiliary head: set TRAIN.MULTI_LEVEL to True"):
        run_test(cfg, run_of(cfg))


def test_every_key_of_theirs_is_an_option_or_answered_with_advice(tmp_path):
    options = flat_options()
    advised = [key for key in KEYS if key not in options]
    assert sorted(advised) == sorted(KEYS_OF_OTHERS)
    values = {"TRAIN": {}, "TEST": {}}
    for key in advised:
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = 1
    with pytest.raises(ConfigError) as error:
        cfg_from_file(write(tmp_path, values))
    lines = str(error.value).splitlines()
    assert len(lines) == len(advised)
    assert all(" is not an option here; leave it out: " in line and "nearest" not in line for line in lines)


def test_a_file_of_plca_is_answered_with_the_translated_one(tmp_path):
    values = {
        "DATASET": {"SOURCE": "SYNTHIA", "NUM_CLASSES": 16},
        "MODEL": {"NETWORK_NAME": "deeplabv2_resnet101"},
        "TRAIN": {"METHOD": "association", "BASE_LR": 2.5e-4},
        "TEST": {"BATCH_SIZE": 2},
    }
    with pytest.raises(ConfigError, match=r"has the sections DATASET, MODEL of PLCA.*configs/synthia2cityscapes\.yml"):
        cfg_from_file(write(tmp_path, values))


def test_a_dump_with_python_tags_is_answered_with_what_to_give_instead(tmp_path):
    path = tmp_path / "train_cfg.yml"
    path.write_text("!!python/object/new:easydict.EasyDict\nstate:\n  SOURCE: SYNTHIA\n")
    with pytest.raises(ConfigError, match="holds Python objects.*give the YAML file that the training was started with"):
        cfg_from_file(path)
