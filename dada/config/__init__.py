"""What can be set (table.py), and what is set (loading.py).

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
