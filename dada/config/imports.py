"""The user's own code: the files that IMPORTS names, imported only where the user names them.

`cfg_from_file` and `cfg_from_list` import them. `cfg_from_dict`, which reads what a snapshot or a release says, does not: anybody
may have written those. In a cfg, and so in every file that holds one, IMPORTS are names of files without folders.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dada.config.option import shown

_sources: dict[str, bytes] = {}  # of the files that were imported, by name


def import_files(files: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Import Python files, each once, as modules of their names. Returns these names.

    Args:
        folder: from which relative paths start.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a module cannot have its name, or another one has it; or its code ends with an error.
    """
    return tuple([_import((folder / file).resolve()) for file in files])


def _import(path: Path) -> str:
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ValueError(f"IMPORTS: {path} has no name that Python can import; call it my_losses.py, for example")
    if not path.is_file():
        raise FileNotFoundError(f"IMPORTS: {path} does not exist; paths are relative to the YAML file that names them")
    source = path.read_bytes()
    if _sources.get(path.name, source) != source:
        raise ValueError(f"IMPORTS: this process has imported another {path.name} than {path}; rename one, or restart Python")
    if path.name not in _sources:
        # Loader processes that start anew find the classes of the file by its name.
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(path.stem)
        if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
            raise ValueError(f"IMPORTS: there is another module called {path.stem}; rename {path}")
        try:
            importlib.import_module(path.stem)
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            where = f", line {lines[-1]}" if lines else ""
            raise ValueError(f"IMPORTS: {path}{where}: {type(error).__name__}: {error}") from error
        _sources[path.name] = source
    return path.name


def imported_sources(cfg: Any) -> dict[str, bytes]:
    """Name and content of each of IMPORTS, as it was imported."""
    return {name: _sources[name] for name in cfg.IMPORTS}


def not_imported(cfg: Any) -> str:
    """What to do about the IMPORTS of a cfg that nobody named on this machine; "" where there are none."""
    missing = [name for name in cfg.IMPORTS if name not in _sources]
    if not missing:
        return ""
    return (
        f"the cfg names code that is not imported, since only you can ask for that: IMPORTS {shown(missing)}. A copy lies beside "
        "the snapshots of the run; give --set IMPORTS='[FOLDER/NAME.py]' if you trust it, or IMPORTS='[]' to do without"
    )
