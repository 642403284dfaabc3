"""Fill, check and save a configuration: YAML files, snapshots and KEY=value pairs, against the table of options.

A cfg is an EasyDict with a value for every option. `cfg` is the one that commands fill from their flags; a program that needs
another one fills what `default_cfg` gives. Functions that are given a cfg read that one: nothing below the commands knows `cfg`.
An unknown key or a value of the wrong type is refused, and all mistakes of a file are reported together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from dada.config.imports import import_files
from dada.config.option import Option, shown
from dada.config.protocols import PROTOCOLS
from dada.config.removed_options import REMOVED, advice, has_no_effect, says_nothing
from dada.config.table import KEYS_OF_OTHERS, OPTIONS, flat_options
from dada.config.yaml_files import parse_yaml, read_yaml
from dada.files import write_whole

_PACKAGE = Path(__file__).resolve().parents[1]
ROOT = _PACKAGE.parent  # the clone that this code lies in, unless it is installed
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else ROOT / "configs"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every mistake found."""


_MOST_MISTAKES = 20  # that a message lists
_PLCAS_SECTIONS = ("DATASET", "MODEL", "EVAL_METRIC", "ENGINE")


def default_cfg(options: Mapping[str, Any] = OPTIONS) -> EasyDict:
    """A new cfg with every option at its default."""
    return EasyDict({k: v.default if isinstance(v, Option) else default_cfg(v) for k, v in options.items()})


cfg = default_cfg()


def reset() -> None:
    """Put every option of `cfg` back to its default."""
    cfg.update(default_cfg())


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    known = (*flat_options(), *REMOVED)
    for key, value in values.items():
        name = f"{prefix}{key if isinstance(key, str) else shown(key)}"
        # A mapping is a section where the table has one; elsewhere it is a value of the wrong type.
        is_section = isinstance(value, Mapping) and any(o.startswith(name + ".") for o in known)
        if is_section:
            found = _flatten(value, name + ".")
        else:
            found = _by_option(name, value) if _is_a_section_for_each(name, value) else {name: value}
        if twice := sorted(flat.keys() & found.keys()):
            raise ConfigError(f"{twice[0]} is given twice, in a section and as a key of its own: only one would count. Join them")
        flat.update(found)
    return flat


def _is_a_section_for_each(name: str, value: Any) -> bool:
    inside = [option for key, option in flat_options().items() if key.startswith(f"{name}.")]
    entries = isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
    return entries and bool(inside) and all(option.each for option in inside)


def _by_option(name: str, sections: list[Mapping]) -> dict[str, list]:
    """A section that is written once for each source -> a list for each option; what one leaves out is at its default."""
    flat, options = [_flatten(section, f"{name}.") for section in sections], flat_options()
    keys = dict.fromkeys(key for section in flat for key in section)
    return {key: [section.get(key, options[key].default if key in options else None) for section in flat] for key in keys}


def _merge(values: Mapping[str, Any], origin: str, into: EasyDict, folder: Path | None = None) -> EasyDict:
    """Check every dotted name and value, then set them all, or raise ConfigError with all mistakes and set none.

    IMPORTS are imported from `folder`; None imports nothing.
    """
    options = flat_options()
    if plcas := [name for name in _PLCAS_SECTIONS if isinstance(values.get(name), Mapping)]:
        raise ConfigError(
            f"{origin} has the sections {', '.join(plcas)} of PLCA, whose keys have other names here: "
            "configs/synthia2cityscapes.yml is PLCA's synthia2cityscapes_train.yaml in our names; start from it"
        )
    accepted, mistakes = {}, []
    for name, value in values.items():
        if has_no_effect(name, value):
            continue
        if name in KEYS_OF_OTHERS or name in REMOVED:
            mistakes.append(f"{origin}: {name} is not an option here; {KEYS_OF_OTHERS.get(name) or advice(name)}")
            continue
        if name not in options:
            near = difflib.get_close_matches(name[:80], options, n=1, cutoff=0.0)[0]
            mistakes.append(f"{origin}: {name[:80]} is not an option; the nearest is {near}")
            continue
        try:
            accepted[name] = options[name].read(value)
        except ValueError as error:
            mistakes.append(f"{origin}: {name}: {error}")
    names = accepted.get("CLASSES.NAMES", into.CLASSES.NAMES)
    if names and "CLASSES.NAMES" in accepted:
        accepted.setdefault("NUM_CLASSES", len(names))
    if names and accepted.get("NUM_CLASSES", len(names)) != len(names):
        mistakes.append(
            f"{origin}: NUM_CLASSES is {accepted['NUM_CLASSES']}, but CLASSES.NAMES holds {len(names)} names; "
            "leave NUM_CLASSES out, it follows from the names"
        )
    if len(mistakes) > _MOST_MISTAKES:
        mistakes[_MOST_MISTAKES:] = [f"and {len(mistakes) - _MOST_MISTAKES} more mistakes"]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    if folder is not None and accepted.get("IMPORTS"):  # they add up, since what is imported stays
        accepted["IMPORTS"] = tuple(dict.fromkeys((*into.IMPORTS, *import_files(accepted["IMPORTS"], folder))))
    # A protocol is written out where it is named, so that what stands beside it, or comes later, prevails.
    for name, value in {**PROTOCOLS.get(accepted.get("TEST.PROTOCOL", ""), {}), **accepted}.items():
        *sections, key = name.split(".")
        node = into
        for section in sections:
            node = node[section]
        node[key] = value
    return into


def find_config(name: str | Path) -> Path:
    """`name` as a path, else in configs/, with or without `.yml`."""
    tried = [Path(name), CONFIGS / name, CONFIGS / f"{name}.yml"]
    for path in tried:
        if path.is_file():
            return path
    known = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yml"))) or "none"
    raise ConfigError(f"configuration {str(name)!r} not found as a file, nor in {CONFIGS} (which holds: {known})")


def cfg_from_file(name: str | Path, into: EasyDict = cfg) -> EasyDict:
    """Merge a YAML file into a cfg, and return that. Raises ConfigError that lists every unknown key and wrong type.

    Files that it names in IMPORTS are imported.
    """
    path = find_config(name)
    return _merge(_flatten(read_cfg(path)), str(path), into, path.parent)


def read_cfg(path: str | Path) -> dict[str, Any]:
    """What a YAML file holds, nested and unchecked. Raises ConfigError if that is no mapping of plain values."""
    try:
        values = read_yaml(path) or {}
    except yaml.constructor.ConstructorError as error:
        if error.problem == "found unhashable key":
            raise ConfigError(
                f'{path} has a list for a key, line {error.problem_mark.line + 1}; write a colour as "r, g, b"'
            ) from error
        raise ConfigError(
            f"{path} holds Python objects, as the train_cfg.yml of ADVENT and DADA does; give the YAML file that the "
            f"training was started with ({str(error.problem)[:200]})"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error)[:500]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold KEY: value pairs, but holds a {type(values).__name__}")
    return values


def cfg_from_dict(values: Mapping[str, Any], origin: str, into: EasyDict = cfg) -> EasyDict:
    """Merge nested plain values, such as `plain_cfg` gives, into a cfg, and return that; `origin` names them in the messages.

    Paths that an earlier version may have written are ignored. IMPORTS are not imported.
    """
    return _merge({name: value for name, value in _flatten(values).items() if not says_nothing(name, value)}, origin, into)


def cfg_from_list(pairs: Iterable[str], into: EasyDict = cfg) -> EasyDict:
    """Merge `KEY=value` pairs, dotted keys and YAML values, into a cfg, and return that: `TRAIN.MAX_ITERS=200`."""
    values, mistakes = {}, []
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            mistakes.append(f"--set {pair}: expected KEY=value")
            continue
        option = flat_options().get(name)
        try:
            # A name or a path is taken as it stands: a folder called 007 or 'on' is no number and no truth value.
            opened = text.lstrip()[:1] in ("[", "(")
            is_text = option is not None and (
                not (option.each and opened) if isinstance(option.default, str) else option.path and not opened
            )
            values[name] = text if is_text else parse_yaml(text)
        except yaml.YAMLError as error:
            mistakes.append(f"--set {pair}: not a YAML value: {error}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return _merge(values, "--set", into, Path())


def option_value(cfg: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value of an option, by its dotted name, in a cfg, plain or not; `default` where that lacks it."""
    found: Any = cfg
    for key in name.split("."):
        found = found.get(key, default) if isinstance(found, Mapping) else default
    return found


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _plain(v) for k, v in node.items()}
    return [_plain(v) for v in node] if isinstance(node, (list, tuple)) else node


def plain_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A cfg as plain dicts, lists and scalars, for YAML, JSON and checkpoints."""
    return _plain(cfg)


def save_cfg(cfg: Mapping[str, Any], path: str | Path) -> None:
    """Write the whole of a cfg as plain YAML that `cfg_from_file` reads back."""
    write_whole(path, yaml.safe_dump(plain_cfg(cfg), sort_keys=False).encode())
