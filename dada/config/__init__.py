"""What can be set, and what is set.

    option.py           one option: how a value of it is read and shown, and what it decides
    removed_options.py  options of earlier versions, and what is said of them
    table.py            every option: default, type, unit, one sentence
    imports.py          files of code that a user names
    loading.py          a cfg, filled from files, snapshots and the command line, checked and saved
    several.py          of several sources or targets, a cfg for each
    protocols.py        how published methods measure, as values of options
    yaml_files.py       YAML from untrusted sources: runs no code, takes bounded memory
    reference_page.py   docs/config.md, written from the table

Other packages import from `dada.config` alone: `from dada.config import cfg, cfg_from_file`.
"""

from dada.config.imports import imported_sources, not_imported
from dada.config.loading import (
    CONFIGS,
    ROOT,
    ConfigError,
    cfg,
    cfg_from_dict,
    cfg_from_file,
    cfg_from_list,
    default_cfg,
    find_config,
    option_value,
    plain_cfg,
    read_cfg,
    reset,
    save_cfg,
)
from dada.config.several import each_dataset, in_file_names, in_words, names_apart, naming_one, several_values
from dada.config.table import KEYS_OF_OTHERS, OPTIONS, flat_options

__all__ = [
    "KEYS_OF_OTHERS",
    "CONFIGS",
    "ConfigError",
    "OPTIONS",
    "ROOT",
    "cfg",
    "cfg_from_dict",
    "cfg_from_file",
    "cfg_from_list",
    "default_cfg",
    "each_dataset",
    "find_config",
    "flat_options",
    "imported_sources",
    "in_file_names",
    "in_words",
    "names_apart",
    "naming_one",
    "not_imported",
    "option_value",
    "plain_cfg",
    "read_cfg",
    "reset",
    "save_cfg",
    "several_values",
]
