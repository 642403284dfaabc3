"""Options: what is accepted, what is refused and how, and that every one of them is read."""

import re
from pathlib import Path

import pytest
import yaml

from dada import config
from dada.config import ConfigError, cfg, cfg_from_file, cfg_from_list, flat_options, plain_cfg, save_cfg

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def defaults():
    config.reset()
    yield
    config.reset()


def write(tmp_path, text, name="run.yml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_every_option_has_a_sentence_and_accepts_its_own_default():
    for name, option in flat_options().items():
        assert option.meaning.endswith("."), name
        assert option.read(option.default) == option.default, name


def test_every_option_is_read_outside_the_table():
    code = "".join(p.read_text() for folder in ("dada", "scripts") for p in (ROOT / folder).rglob("*.py")
                   if p.name != "config.py")
    unread = [name for name in flat_options() if not re.search(rf"[.\"']{name.split('.')[-1]}\b", code)]
    assert not unread


def test_contrastive_learning_is_off_by_default():
    assert cfg.CONTRASTIVE_LEARNING is False


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path):
    cfg_from_file(path)


ANCESTORS = {
    "fork s2c/dada.yml": """
        EXP_NAME: SYNTHIA2Cityscapes_DeepLabv2_DADA_Contrastive
        SOURCE: SYNTHIA
        TARGET: Cityscapes
        NUM_WORKERS: 4
        DATA_DIRECTORY_SOURCE: ../../data/Synthia/RAND_CITYSCAPES
        DATA_DIRECTORY_TARGET: ../../data/Cityscapes
        USE_DEPTH: False
        TRAIN: {DA_METHOD: DADA, MODEL: DeepLabv2, RESTORE_FROM: ../../pretrained_models/DeepLab_resnet_pretrained_imagenet.pth}
        TEST: {MODE: best}""",
    "DADA s2c/dada.yml": """
        EXP_NAME: SYNTHIA2Cityscapes_DeepLabv2_DADA
        SOURCE: SYNTHIA
        TARGET: Cityscapes
        NUM_WORKERS: 4
        USE_DEPTH: True
        TRAIN: {DA_METHOD: DADA, MODEL: DeepLabv2_depth, RESTORE_FROM: ../../pretrained_models/DeepLab_resnet_pretrained_imagenet.pth}
        TEST: {MODE: best}""",
    "DADA s2c/advent.yml": """
        EXP_NAME: SYNTHIA2Cityscapes_DeepLabv2_AdvEnt
        SOURCE: SYNTHIA
        TARGET: Cityscapes
        NUM_WORKERS: 4
        USE_DEPTH: False
        TRAIN: {DA_METHOD: AdvEnt, MODEL: DeepLabv2, RESTORE_FROM: ../../pretrained_models/DeepLab_resnet_pretrained_imagenet.pth}
        TEST: {MODE: best, MODEL: [DeepLabv2]}""",
    "DADA s2m/dada.yml": """
        EXP_NAME: SYNTHIA2Mapillary_DeepLabv2_DADA_7classes
        SOURCE: SYNTHIA
        TARGET: Mapillary
        NUM_WORKERS: 4
        NUM_CLASSES: 7
        DATA_LIST_TARGET: ../dataset/mapillary_list/{}.txt
        DATA_DIRECTORY_TARGET: ../../data/Mapillary
        USE_DEPTH: True
        TRAIN:
          DA_METHOD: DADA
          MODEL: DeepLabv2_depth
          INFO_TARGET: ../dataset/mapillary_list/info.json
          INPUT_SIZE_TARGET: [1024, 768]
        TEST:
          MODE: best
          INFO_TARGET: ../dataset/mapillary_list/info.json
          INPUT_SIZE_TARGET: [1024, 768]
          SET_TARGET: validation""",
    "ADVENT advent.yml": """
        SOURCE: GTA
        TARGET: Cityscapes
        NUM_WORKERS: 4
        TRAIN:
          DA_METHOD: AdvEnt
          MULTI_LEVEL: True
          LAMBDA_ADV_MAIN: 0.001
          LAMBDA_ADV_AUX: 0.0002
          RESTORE_FROM: ../../pretrained_models/DeepLab_resnet_pretrained_imagenet.pth
        TEST: {MODE: best}""",
    "ADVENT advent+minent_pretrained.yml": """
        SOURCE: GTA
        TARGET: Cityscapes
        TEST:
          MODE: single
          MODEL: [DeepLabv2, DeepLabv2]
          MODEL_WEIGHT: [0.5, 0.5]
          MULTI_LEVEL: [True, True]
          RESTORE_FROM: [../../pretrained_models/gta2cityscapes_advent.pth, ../../pretrained_models/gta2cityscapes_minent_ER.pth]""",
}


@pytest.mark.parametrize("text", ANCESTORS.values(), ids=ANCESTORS.keys())
def test_the_ancestors_files_load_as_they_are(text, tmp_path):
    cfg_from_file(write(tmp_path, text))
    values = yaml.safe_load(text)
    assert cfg.SOURCE == values["SOURCE"] and cfg.TEST.MODE == values["TEST"]["MODE"]


def test_all_mistakes_are_reported_at_once_with_file_key_and_nearest_or_expected(tmp_path):
    path = write(tmp_path, "TRAIN:\n  LEARNING_RAT: 0.1\n  MAX_ITERS: soon\nNUM_CLASES: 16\nUSE_DEPTH: 1\nTEST: 3\n")
    with pytest.raises(ConfigError) as error:
        cfg_from_file(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 5 and all(line.startswith(f"{path}: ") for line in lines)
    assert "TRAIN.LEARNING_RAT is not an option; the nearest is TRAIN.LEARNING_RATE" in lines[0]
    assert "TRAIN.MAX_ITERS: expected int, got str 'soon'" in lines[1]
    assert "nearest is NUM_CLASSES" in lines[2]
    assert "USE_DEPTH: expected bool, got int 1" in lines[3]
    assert "TEST" in lines[4]


def test_a_refused_file_changes_nothing(tmp_path):
    before = plain_cfg()
    with pytest.raises(ConfigError):
        cfg_from_file(write(tmp_path, "NUM_CLASSES: 19\nTRAIN: {POWR: 2.0}\n"))
    assert plain_cfg() == before


@pytest.mark.parametrize("text, value", [("1e-4", 1e-4), ("1", 1.0), ("2.5e-4", 2.5e-4)])
def test_floats_may_be_written_as_ints_or_with_an_exponent(text, value, tmp_path):
    cfg_from_file(write(tmp_path, f"TRAIN: {{LEARNING_RATE: {text}}}"))
    assert cfg.TRAIN.LEARNING_RATE == value and isinstance(cfg.TRAIN.LEARNING_RATE, float)


def test_lists_are_taken_for_tuples(tmp_path):
    cfg_from_file(write(tmp_path, "TEST: {INPUT_SIZE_TARGET: [730, 365], SCALES: [1, 0.75]}"))
    assert tuple(cfg.TEST.INPUT_SIZE_TARGET) == (730, 365) and tuple(cfg.TEST.SCALES) == (1.0, 0.75)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("TEST.INPUT_SIZE_TARGET=[730]", "expected a list of 2 int, got 1 entries"),
        ("TEST.INPUT_SIZE_TARGET=730", "expected a list of 2 int, got 730"),
        ("TEST.INPUT_SIZE_TARGET=[0, 5]", "at least 1"),
        ("NUM_CLASSES=1", "at least 2, got 1"),
        ("TEST.MODE=both", "one of 'single', 'best', got 'both'"),
        ("TRAIN.LEARNING_RATE=-1", "at least 0"),
        ("TRAIN.BATCH_SIZE_SOURCE=1.5", "expected int, got float 1.5"),
        ("TRAIN.MAX_ITERS=", "expected int, got NoneType"),
        ("TRAIN.MAX_ITERS", "expected KEY=value"),
        ("TRAIN.MAX_ITERS=[", "not a YAML value"),
        ("TRAIN=5", "TRAIN is not an option"),
    ],
)
def test_wrong_overrides_say_what_was_expected(pair, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        cfg_from_list([pair])


def test_overrides_set_dotted_keys_and_text_is_taken_as_it_stands():
    cfg_from_list(["TRAIN.MAX_ITERS=200", "CONTRASTIVE_LEARNING=True", "EXP_NAME=007", "DATA_DIRECTORY_SOURCE=a=b"])
    assert cfg.TRAIN.MAX_ITERS == 200 and cfg.CONTRASTIVE_LEARNING is True
    assert cfg.EXP_NAME == "007" and cfg.DATA_DIRECTORY_SOURCE == "a=b"


def test_the_saved_copy_is_plain_yaml_and_reads_back(tmp_path):
    cfg_from_list(["TRAIN.LEARNING_RATE=1e-4", "TEST.MODEL=[DeepLabv2]", "TEST.SCALES=[0.75, 1.0]"])
    saved = plain_cfg()
    save_cfg(tmp_path / "folder" / "train_cfg.yml")
    text = (tmp_path / "folder" / "train_cfg.yml").read_text()
    assert "!!" not in text
    config.reset()
    cfg_from_file(tmp_path / "folder" / "train_cfg.yml")
    assert plain_cfg() == saved


def test_a_configuration_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg_from_file("synthia2cityscapes.yml")
    assert cfg.CONTRASTIVE_LEARNING is True
    (tmp_path / "synthia2cityscapes.yml").write_text("CONTRASTIVE_LEARNING: False\n")
    cfg_from_file("synthia2cityscapes.yml")  # a path that exists comes first
    assert cfg.CONTRASTIVE_LEARNING is False


def test_a_missing_configuration_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'synthia2city.yml' not found.*toycity.yml"):
        cfg_from_file("synthia2city.yml")


@pytest.mark.parametrize("text, message", [("a: [", "not valid YAML"), ("- 1\n- 2\n", "KEY: value pairs.*list")])
def test_a_file_that_is_no_mapping_is_refused(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        cfg_from_file(write(tmp_path, text))


def test_published_plca_is_what_the_configuration_says():
    cfg_from_file("synthia2cityscapes.yml")
    assert (cfg.DATA_TRANSFORM.LOADSIZE, cfg.DATA_TRANSFORM.CROPSIZE) == (760, 730)
    assert cfg.TRAIN.LAMBDA_LOVASZ == 0.75 * 2 * cfg.TRAIN.ITER_SIZE  # times its two processes and ITER_SIZE
    assert cfg.TRAIN.EARLY_STOP / cfg.TRAIN.MAX_ITERS == 8 / 10
