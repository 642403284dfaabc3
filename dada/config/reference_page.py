"""The page docs/config.md, written from the table of options in dada/config/table.py."""

from __future__ import annotations

import re
from typing import Any

from dada.config import OPTIONS, ROOT, flat_options
from dada.config.option import ROLES, Option, shown

PAGE = ROOT / "docs" / "config.md"

_HEAD = """\
# Options

Written by `python scripts/config_reference.py` from [dada/config/table.py](../dada/config/table.py); change them there.

An option is set in a YAML file, nested by section, or on the command line by its whole name:

```bash
python scripts/train.py --cfg toycity.yml --set TRAIN.MAX_ITERS=200 TEST.INPUT_SIZE_TARGET=[512,256]
```

Later files of `--cfg` override earlier ones, and `--set` overrides them all. Unknown names and values of the wrong type are
refused at the start, all at once. Each run writes the values of all options to `train_cfg.yml` in its folder.

After each default, in brackets, stand the type and what the option decides, which is *weights* if nothing is said:

"""
_HEAD += "".join(f"- *{role}*: {sentence}\n" for role, sentence in ROLES.items())
_HEAD += """
A resumed run must keep its *weights* options; all others may change. `scripts/report.py` treats runs as seeds of one method if
they differ in no option of *weights*, *span* or *score* but the seed. A release leaves out what belongs to the *machine*, and the
paths of files (*local*), which reports compare by name.
"""

# What belongs together; "" are the options without a section.
SECTIONS = {
    "": "Data, classes, device and folders.",
    "CLASSES": "Classes of your own, see [the tutorial](tutorial.md).",
    "FOLDER_SOURCE": "Where `SOURCE` is `Folder`: how its files are found and what its labels mean. Of several sources, a list "
    "of such sections.",
    "FOLDER_TARGET": "The same options where `TARGET` is `Folder`; of several targets, a list of such sections:",
    "DATA_TRANSFORM": "How training images are cut out and changed.",
    "TRAIN": "Network, optimizer, method and schedule. What the methods are: [methods.md](methods.md).",
    "SELF_TRAINING": "[Terms that learn from a teacher](methods.md#self-training), which add to any method.",
    "TEST": "How a network is measured, see [protocols](coming-from.md#protocols). `scripts/predict.py` reads sizes, windows, "
    "flips and scales here too.",
    "LEGACY": "[Habits that published numbers depend on](coming-from.md#switches-for-published-numbers).",
}


def reference() -> str:
    """The whole page, Markdown."""
    general = {key: value for key, value in OPTIONS.items() if isinstance(value, Option)}
    sections = {"": general, **{key: value for key, value in OPTIONS.items() if key not in general}}
    titles = [section or "General" for section in sections]
    parts = [_HEAD, f"Sections: {', '.join(f'[{title}](#{title.lower()})' for title in titles)}.\n"]
    for title, (section, inside) in zip(titles, sections.items()):
        parts.append(f"## {title}\n\n{SECTIONS[section]}\n")
        prefix = f"{section}." if section else ""
        if section == "FOLDER_TARGET":  # the options of FOLDER_SOURCE, listed there
            parts.append(", ".join(f'<a id="{anchor(name)}"></a>`{name}`' for name in flat_options(inside, prefix)) + ".\n")
            continue
        parts.append("\n".join(_entry(name, option) for name, option in flat_options(inside, prefix).items()) + "\n")
    return "\n".join(parts)


def _entry(name: str, option: Option) -> str:
    """A list entry rather than a row of a table, whose columns would be too narrow for names on a phone."""
    kind = option.type_name
    if option.choices and not isinstance(option.default, dict):
        kind = "one of " + ", ".join(f"`{_value(choice)}`" for choice in option.choices)
    elif option.limits:
        kind += f", {option.limits}"
    if option.unit:
        kind += f"; {option.unit}"
    roles = [option.role] * (option.role != "weights") + ["local"] * (bool(option.path) and option.role != "machine")
    role = f"; *{', '.join(roles)}*" if roles else ""
    meaning = re.sub(r"\*|(?<!\w)_|_(?!\w)", r"\\\g<0>", option.meaning)
    return f'- <a id="{anchor(name)}"></a>**`{name}`**: `{_value(option.default)}` ({kind}{role})<br>{meaning}'


def anchor(name: str) -> str:
    """What a link to an option ends with: `config.md#train-max_iters` for TRAIN.MAX_ITERS."""
    return name.lower().replace(".", "-")


def _value(value: Any) -> str:
    """As it is written in YAML."""
    if value == "":
        return '""'
    if isinstance(value, tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    return value if isinstance(value, str) else shown(value)
