"""Protocols of published methods: what they set, what stands beside them, and how a report names them."""

from pathlib import Path

import pytest
from tiny import tiny_options

from dada import config
from dada.config import ConfigError, cfg, cfg_from_file, cfg_from_list, flat_options, plain_cfg
from dada.config.protocols import OPTIONS_OF_A_PROTOCOL, PROTOCOLS, describe, short
from dada.evaluation.tester import protocol


def value_of(option):
    node = cfg
    for part in option.split("."):
        node = node[part]
    return node


def test_every_protocol_sets_the_same_options_all_of_them_options_of_the_cfg_with_values_it_accepts():
    options = flat_options()
    for preset in PROTOCOLS.values():
        assert tuple(preset) == OPTIONS_OF_A_PROTOCOL
        for option, value in preset.items():
            assert options[option].read(value) == value
    assert len({short(option) for option in OPTIONS_OF_A_PROTOCOL}) == len(OPTIONS_OF_A_PROTOCOL)


def test_no_two_protocols_are_the_same():
    assert len({str(preset) for preset in PROTOCOLS.values()}) == len(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_naming_a_protocol_sets_all_its_options(name):
    cfg_from_list([f"TEST.PROTOCOL={name}"])
    assert {option: value_of(option) for option in OPTIONS_OF_A_PROTOCOL} == PROTOCOLS[name]
    assert protocol(cfg)["PROTOCOL"] == name


def test_a_protocol_overrides_what_was_set_before_it(tmp_path):
    """The YAML of a run has sizes of its own; `--set TEST.PROTOCOL=plca` means plca's."""
    run = tmp_path / "run.yml"
    run.write_text("TEST: {INPUT_SIZE_TARGET: [730, 365], FLIP: True}\n")
    cfg_from_file(run)
    cfg_from_list(["TEST.PROTOCOL=plca"])
    assert tuple(cfg.TEST.INPUT_SIZE_TARGET) == (1460, 730) and cfg.TEST.FLIP is False and cfg.ALIGN_CORNERS is False
    assert protocol(cfg)["PROTOCOL"] == "plca"


@pytest.mark.parametrize(
    "steps",
    [
        [["TEST.PROTOCOL=advent", "TEST.FLIP=True"]],
        [["TEST.FLIP=True", "TEST.PROTOCOL=advent"]],
        [["TEST.PROTOCOL=advent"], ["TEST.FLIP=True"]],
    ],
    ids=["beside it", "before it in the same list", "later"],
)
def test_what_is_given_beside_or_after_a_protocol_stands_and_the_report_says_so(steps):
    for pairs in steps:
        cfg_from_list(pairs)
    assert cfg.TEST.FLIP is True and tuple(cfg.TEST.OUTPUT_SIZE_TARGET) == (2048, 1024)
    assert protocol(cfg)["PROTOCOL"] == "advent, except FLIP True"


def test_several_deviations_are_all_named():
    cfg_from_list(["TEST.PROTOCOL=advent", "TEST.INPUT_SIZE_TARGET=[512, 256]", "ALIGN_CORNERS=False"])
    assert protocol(cfg)["PROTOCOL"] == "advent, except ALIGN_CORNERS False, INPUT_SIZE_TARGET [512, 256]"


def test_without_a_protocol_the_options_stay_and_the_report_says_custom():
    before = plain_cfg(cfg)
    cfg_from_list(["TEST.PROTOCOL="])
    assert plain_cfg(cfg) == before and protocol(cfg)["PROTOCOL"] == "custom"


def test_a_saved_configuration_with_a_protocol_and_a_deviation_reads_back(tmp_path):
    cfg_from_list(["TEST.PROTOCOL=hrda", "TEST.SLIDE_STRIDE=[341, 341]"])
    saved = plain_cfg(cfg)
    config.save_cfg(cfg, tmp_path / "train_cfg.yml")
    config.reset()
    cfg_from_file(tmp_path / "train_cfg.yml")
    assert plain_cfg(cfg) == saved


def test_an_unknown_protocol_lists_the_known():
    with pytest.raises(ConfigError, match="'advent', 'plca', 'dacs', 'daformer', 'hrda', got 'advnet'"):
        cfg_from_list(["TEST.PROTOCOL=advnet"])


def test_a_refused_file_with_a_protocol_changes_nothing():
    before = plain_cfg(cfg)
    with pytest.raises(ConfigError):
        cfg_from_list(["TEST.PROTOCOL=plca", "TEST.FLIP=perhaps"])
    assert plain_cfg(cfg) == before


def test_lists_and_tuples_of_the_same_values_are_no_deviation():
    settings = {option: list(v) if isinstance(v, tuple) else v for option, v in PROTOCOLS["hrda"].items()}
    assert describe("hrda", settings) == "hrda"


def test_the_protocol_reports_every_option_that_it_is_made_of(city, tmp_path):
    cfg_from_list(tiny_options(city, tmp_path))
    settings = protocol(cfg)
    assert {short(option) for option in OPTIONS_OF_A_PROTOCOL} <= set(settings)
    assert settings["INPUT_SIZE_TARGET"] == [128, 64] and settings["TARGET"] == "Cityscapes"


def test_the_table_of_the_page_holds_every_value():
    page = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in page.splitlines()
        if line.startswith("| ")
    }
    assert rows["option"] == [f"`{name}`" for name in PROTOCOLS]
    for option in OPTIONS_OF_A_PROTOCOL:
        values = (preset[option] for preset in PROTOCOLS.values())
        assert rows[f"`{option}`"] == [str(list(v) if isinstance(v, tuple) else v) for v in values]
