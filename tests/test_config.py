"""Options: what is accepted, what is refused and how, and that every one of them is read."""

import re
from pathlib import Path

import pytest

from dada import config
from dada.config import ConfigError, cfg, cfg_from_file, cfg_from_list, flat_options, option_value, plain_cfg, save_cfg
from dada.config.option import ROLES
from dada.config.yaml_files import parse_yaml

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
    code = "".join(p.read_text() for folder in ("dada", "scripts") for p in (ROOT / folder).rglob("*.py") if p.name != "table.py")
    code += "".join(
        re.sub(r"\{(upper|key|role\.upper\(\))\}", role, code) for role in ("SOURCE", "TARGET")
    )  # f"{role.upper()}_SHARE"
    unread = [name for name in flat_options() if not re.search(rf"[.\"']{name.split('.')[-1]}\b", code)]
    assert not unread


def test_contrastive_learning_is_off_by_default():
    assert cfg.CONTRASTIVE_LEARNING is False


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path):
    cfg_from_file(path)


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
    before = plain_cfg(cfg)
    with pytest.raises(ConfigError):
        cfg_from_file(write(tmp_path, "NUM_CLASSES: 19\nTRAIN: {POWR: 2.0}\n"))
    assert plain_cfg(cfg) == before


@pytest.mark.parametrize("text, value", [("1e-4", 1e-4), ("1", 1.0), ("2.5e-4", 2.5e-4)])
def test_floats_may_be_written_as_ints_or_with_an_exponent(text, value, tmp_path):
    cfg_from_file(write(tmp_path, f"TRAIN: {{LEARNING_RATE: {text}}}"))
    assert value == cfg.TRAIN.LEARNING_RATE and isinstance(cfg.TRAIN.LEARNING_RATE, float)


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


def test_what_an_earlier_version_wrote_loads_unless_it_set_an_option_that_has_been_removed(tmp_path):
    usual = plain_cfg(cfg)
    removed = {"FDA_BETA": 0.0, "SNAPSHOT_DIR": "/gone/snapshots/mine"}  # a folder says nothing of the network
    stored = {**usual, "TRAIN": {**usual["TRAIN"], **removed}, "ASSOCIATION": {"MEMORY": 0, "SOFT": False}}
    config.cfg_from_dict(stored, "model_300.pth")
    cfg_from_file(
        write(tmp_path, "TRAIN: {FDA_BETA: 0, SNAPSHOT_DIR: ''}\nTEST: {SNAPSHOT_DIR: []}\nCLASS_CONTRAST: {FORM: dist}")
    )
    assert plain_cfg(cfg) == usual
    stored["TRAIN"]["FDA_BETA"] = 0.05
    with pytest.raises(ConfigError, match="model_300.pth: TRAIN.FDA_BETA is not an option here.*git checkout 5b9aea9"):
        config.cfg_from_dict(stored, "model_300.pth")
    with pytest.raises(ConfigError, match="ASSOCIATION.MEMORY is not an option here.*git checkout 60464c8"):
        cfg_from_list(["ASSOCIATION.MEMORY=4096"])
    assert plain_cfg(cfg) == usual


def test_overrides_set_dotted_keys_and_text_is_taken_as_it_stands():
    cfg_from_list(["TRAIN.MAX_ITERS=200", "CONTRASTIVE_LEARNING=True", "EXP_NAME=007", "DATA_DIRECTORY_SOURCE=a=b"])
    assert cfg.TRAIN.MAX_ITERS == 200 and cfg.CONTRASTIVE_LEARNING is True
    assert cfg.EXP_NAME == "007" and cfg.DATA_DIRECTORY_SOURCE == "a=b"


def test_the_saved_copy_is_plain_yaml_and_reads_back(tmp_path):
    cfg_from_list(["TRAIN.LEARNING_RATE=1e-4", "TEST.MODEL=[DeepLabv2]", "TEST.SCALES=[0.75, 1.0]"])
    saved = plain_cfg(cfg)
    save_cfg(cfg, tmp_path / "folder" / "train_cfg.yml")
    text = (tmp_path / "folder" / "train_cfg.yml").read_text()
    assert "!!" not in text
    config.reset()
    cfg_from_file(tmp_path / "folder" / "train_cfg.yml")
    assert plain_cfg(cfg) == saved


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


# ---- mappings, lists of colours, and classes of one's own


def test_a_list_that_must_hold_something_is_not_emptied():
    with pytest.raises(ConfigError, match="TEST.SCALES: expected a list of any number of float, at least one, got none"):
        cfg_from_list(["TEST.SCALES=[]"])
    assert cfg_from_list(["TEST.RESTORE_FROM=[]"]).TEST.RESTORE_FROM == ()


def test_mappings_and_colours_load_and_read_back_from_the_saved_copy(tmp_path):
    text = """
        CLASSES: {NAMES: [soil, weed], COLORS: [[120, 80, 40], [0, 160, 0]]}
        FOLDER_SOURCE:
          LABEL_MAP:
            0: soil
            7: weed
            9, 9, 9: ignore
            "#ff0000": weed"""
    cfg_from_file(write(tmp_path, text))
    assert cfg.FOLDER_SOURCE.LABEL_MAP == {"0": "soil", "7": "weed", "9, 9, 9": "ignore", "#ff0000": "weed"}
    assert cfg.CLASSES.COLORS == ((120, 80, 40), (0, 160, 0))
    saved = plain_cfg(cfg)
    save_cfg(cfg, tmp_path / "train_cfg.yml")
    assert "!!" not in (tmp_path / "train_cfg.yml").read_text()
    config.reset()
    assert cfg.FOLDER_SOURCE.LABEL_MAP == {}
    cfg_from_file(tmp_path / "train_cfg.yml")
    assert plain_cfg(cfg) == saved


def test_a_mapping_is_replaced_as_a_whole():
    cfg_from_list(["FOLDER_TARGET.LABEL_MAP={0: soil, 1: weed}"])
    cfg_from_list(["FOLDER_TARGET.LABEL_MAP={2: soil}"])
    assert cfg.FOLDER_TARGET.LABEL_MAP == {"2": "soil"} and cfg.FOLDER_SOURCE.LABEL_MAP == {}


@pytest.mark.parametrize(
    "pair, message",
    [
        ("FOLDER_TARGET.LABEL_MAP=[0, soil]", "synthia, wilddash, got 0"),
        ("FOLDER_SOURCE.LABEL_MAP={0: 1}", "FOLDER_SOURCE.LABEL_MAP: 0: expected str, got int 1"),
        ("CLASSES.COLORS=[1, 2, 3]", "expected a list of 3 int, got 1"),
        ("CLASSES.COLORS=red", "expected a list of any number of list of 3 int, got 'red'"),
        ("CLASSES.COLORS=[[1, 2, 256]]", "expected 0 to 255, got 256"),
        ("CLASSES.COLORS=[[1, 2]]", "expected a list of 3 int, got 2 entries"),
        ("TEST.SLIDE_CROP=[64]", "TEST.SLIDE_CROP: expected a list of none or 2 int, got 1 entries: [64]"),
    ],
)
def test_wrong_mappings_and_colours_say_what_was_expected(pair, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        cfg_from_list([pair])


@pytest.mark.parametrize(
    "name, inside, outside, limits",
    [
        ("SELF_TRAINING.THRESHOLD", (0, 1), (-0.1, 1.5), "0 to 1"),
        ("SELF_TRAINING.MIC_RATIO", (0, 1), (70,), "0 to 1"),
        ("SELF_TRAINING.EMA_DECAY", (0, 0.999), (-0.1, 1), "at least 0 and less than 1"),
        ("TRAIN.LAYER_DECAY", (0.001, 1), (0, 1.1), "above 0 and at most 1"),
        ("TRAIN.SPAGG_ALPHA", (0, 1), (1.1,), "0 to 1"),
        ("TRAIN.CONSISTENCY_THRESHOLD", (0, 1), (90,), "0 to 1"),
        ("DATA_TRANSFORM.FLIP", (0, 1), (50,), "0 to 1"),
        ("TRAIN.LEARNING_RATE", (0, 7), (-1,), "at least 0"),
        ("TEST.MODEL_WEIGHT", ([], [0.5, 3]), ([1, 0],), "above 0"),
    ],
)
def test_a_value_has_the_range_of_its_row_and_another_is_answered_with_that_range(name, inside, outside, limits):
    for value in inside:
        cfg_from_list([f"{name}={value}"])
        assert option_value(plain_cfg(cfg), name) == value
    for value in outside:
        with pytest.raises(ConfigError, match=re.escape(f"{name}: expected {limits}, got ")):
            cfg_from_list([f"{name}={value}"])


def test_every_option_decides_something_and_files_and_folders_say_that_they_are_such():
    for name, option in flat_options().items():
        assert option.role in ROLES, name
        paths = ("DATA_DIRECTORY", "DATA_LIST", "TARGET_LABELLED", "EXP_ROOT", "INFO_", "RESTORE_FROM")
        assert option.path == name.rpartition(".")[2].startswith(paths), name
        assert option.role != "weights" or not name.startswith("TEST."), name


def test_a_list_for_a_key_is_answered_with_how_to_write_a_colour(tmp_path):
    with pytest.raises(ConfigError, match='list for a key(.|\n)*line 1(.|\n)*write a colour as "r, g, b"'):
        cfg_from_file(write(tmp_path, "FOLDER_SOURCE: {LABEL_MAP: {[1, 2, 3]: soil}}"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("TRAIN:\n  MODEL: resnet-18\nTEST:\n  FLIP: True\nTRAIN:\n  MAX_ITERS: 9\n", "'TRAIN' is given twice, lines 1 and 5"),
        ("TRAIN:\n  MAX_ITERS: 8\n  MODEL: resnet-18\n  MAX_ITERS: 9\n", "'MAX_ITERS' is given twice, lines 2 and 4"),
        ("FOLDER_SOURCE: {LABEL_MAP: {7: a, 8: b, 7: c}}", "'7' is given twice"),
        ('FOLDER_SOURCE: {LABEL_MAP: {7: a, "7": b}}', "LABEL_MAP: expected every key once, got"),
        ("TRAIN.MODEL: resnet-18\nTRAIN:\n  MODEL: DeepLabv2\n", "TRAIN.MODEL is given twice"),
    ],
)
def test_what_is_given_twice_is_refused_since_only_one_would_count(text, message, tmp_path):
    (tmp_path / "twice.yml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        cfg_from_file(tmp_path / "twice.yml")


def test_what_a_merge_key_brings_in_may_be_given_anew():
    base = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n"
    assert parse_yaml(base) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


def test_the_number_of_classes_follows_from_their_names(tmp_path):
    cfg_from_file(write(tmp_path, "CLASSES: {NAMES: [soil, crop, weed]}"))
    assert cfg.NUM_CLASSES == 3
    cfg_from_file(write(tmp_path, "CLASSES: {NAMES: [soil, crop]}\nNUM_CLASSES: 2"))
    assert cfg.NUM_CLASSES == 2
    before = plain_cfg(cfg)
    for text in ("NUM_CLASSES: 16", "CLASSES: {NAMES: [soil, crop, weed]}\nNUM_CLASSES: 2"):
        with pytest.raises(ConfigError, match=r"NUM_CLASSES is \d+, but CLASSES.NAMES holds \d names; leave NUM_CLASSES"):
            cfg_from_file(write(tmp_path, text))
    assert plain_cfg(cfg) == before


@pytest.mark.parametrize("text", ["model_300.pth", "007", r"C:\runs\model.pth", "[model_300.pth]", "a b.pth"])
def test_one_file_needs_no_brackets_where_several_may_be_given(text):
    cfg_from_list([f"TEST.RESTORE_FROM={text}"])
    assert (text.strip("[]"),) == cfg.TEST.RESTORE_FROM
    cfg_from_list(["TEST.RESTORE_FROM=[a.pth, b.pth]"])
    assert cfg.TEST.RESTORE_FROM == ("a.pth", "b.pth")
