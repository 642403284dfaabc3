"""An import only ever goes down: the order of the packages is that of docs/draw_packages.py, which draws them."""

import ast
import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from pages import ROOT

spec = importlib.util.spec_from_file_location("draw_packages", ROOT / "docs" / "draw_packages.py")
drawing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawing)

METHOD = "dada.domain_adaptation."
MODULES = drawing.modules_of()


def upward(modules: Mapping[str, Path]) -> list[str]:
    """Imports that do not go to a lower layer; inside a package they are free, but for the method."""
    outer, inner = drawing.layer_of(drawing.LAYERS), drawing.layer_of(drawing.METHOD_LAYERS)
    found = []
    for i in drawing.imports_of(modules):
        a, b, depth = drawing.package_of(i.importer), drawing.package_of(i.imported), outer
        if a == b and i.importer.startswith(METHOD) and i.imported.startswith(METHOD):
            a, b, depth = i.importer.split(".")[2], i.imported.split(".")[2], inner
        if a != b and a != "dada" and depth[a] >= depth[b]:
            found.append(f"{i.importer}:{i.line} imports {i.imported}")
    return found


def in_circles(modules: Mapping[str, Path]) -> set[str]:
    """Modules that import each other, over however many others."""
    imports: dict[str, set[str]] = {}
    for i in drawing.imports_of(modules):
        imports.setdefault(i.importer, set()).add(i.imported)
    left = set(imports)
    # What imports nothing that is left is in no circle; take it away until nothing changes.
    while gone := {module for module in left if not imports[module] & left}:
        left -= gone
    # Nor is what nothing that is left imports.
    while gone := {module for module in left if not any(module in imports[other] for other in left)}:
        left -= gone
    return left


def places_counted_in_folders(modules: Mapping[str, Path]) -> list[str]:
    """`Path(__file__).parents[n]` and `.parent.parent` outside config/, which go wrong without a word when a file moves."""
    found = []
    for name, path in modules.items():
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "__file__" in source else ():
            text = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Subscript)) else ""
            counted = ".parent.parent" in text or ".parents[" in text
            if "__file__" in text and counted and not name.startswith("dada.config"):
                found.append(f"{name}:{node.lineno}")
    return found


def spoilt(folder: Path, added: Mapping[str, str]) -> dict[str, Path]:
    """MODULES, with this text at the end of these; a copy of each stands in `folder`."""
    changed = {}
    for name, text in added.items():
        changed[name] = folder / f"{name}.py"
        former = MODULES[name].read_text(encoding="utf-8") if name in MODULES else ""
        changed[name].write_text(former + text, encoding="utf-8")
    return MODULES | changed


def test_every_package_has_a_layer():
    known = {"dada", *drawing.layer_of(drawing.LAYERS)}
    assert {drawing.package_of(name) for name in MODULES} <= known, "name the new one in LAYERS of docs/draw_packages.py"
    inside = {n.split(".")[2] for n in MODULES if n.startswith(METHOD)}
    assert inside == set(drawing.layer_of(drawing.METHOD_LAYERS)), "METHOD_LAYERS of docs/draw_packages.py"


def test_no_import_goes_up():
    assert not upward(MODULES)


def test_no_modules_import_each_other():
    assert not in_circles(MODULES)


@pytest.mark.parametrize(
    "text",
    [
        "\nfrom dada.training.loop import train\n",
        "\ndef late():\n    import dada.segmenter\n",
        "\nif False:\n    from dada import build\n",
        "\nfrom ..evaluation import metrics\n",
    ],
)
def test_an_import_that_is_turned_around_is_found(tmp_path, text):
    (line,) = upward(spoilt(tmp_path, {"dada.dataset.sample": text}))
    assert line.startswith("dada.dataset.sample:")


def test_an_import_that_goes_up_inside_the_method_is_found(tmp_path):
    (line,) = upward(spoilt(tmp_path, {"dada.domain_adaptation.step": "\nfrom dada.domain_adaptation import objectives\n"}))
    assert line.startswith("dada.domain_adaptation.step:") and line.endswith("imports dada.domain_adaptation.objectives")


def test_the_definition_of_cycle_association_knows_nothing_of_tiles_or_ranks():
    imported = {i.imported for i in drawing.imports_of(MODULES) if i.importer == METHOD + "contrastive_learning"}
    assert imported == {"dada.matmul_precision"}


def test_a_circle_inside_a_package_is_found(tmp_path):
    one, two = "from dada.model import two\n", "def late():\n    from dada.model.one import x\n"
    modules = spoilt(tmp_path, {"dada.model.one": one, "dada.model.two": two})
    assert in_circles(modules) == {"dada.model.one", "dada.model.two"}


def test_places_are_not_counted_in_folders(tmp_path):
    assert not places_counted_in_folders(MODULES)
    parents, parent = "\nROOT = Path(__file__).resolve().parents[2]\n", "\nROOT = Path(__file__).parent.parent / 'configs'\n"
    modules = spoilt(tmp_path, {"dada.model.outputs": parents, "dada.model.depth": parent})
    assert {name.split(":")[0] for name in places_counted_in_folders(modules)} == {"dada.model.outputs", "dada.model.depth"}


def reads_of_the_global_cfg(modules: dict[str, Path]) -> list[str]:
    """Where a module below the commands knows `cfg` of dada.config, or fills it by leaving out the last argument."""
    arguments = {"cfg_from_file": 2, "cfg_from_list": 2, "cfg_from_dict": 3}
    found = []
    for name, path in modules.items():
        source = path.read_text(encoding="utf-8")
        if drawing.package_of(name) in ("config", "cli", "__main__") or "dada.config" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dada.config"):
                wrong = any(alias.name in ("cfg", "reset") for alias in node.names)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                wrong = len(node.args) + len(node.keywords) < arguments.get(node.func.id, 0)
            else:
                wrong = False
            if wrong:
                found.append(f"{name}:{node.lineno}")
    return found


def test_only_the_command_line_knows_the_global_cfg():
    assert reads_of_the_global_cfg(MODULES) == []


def test_a_read_of_the_global_cfg_is_noticed(tmp_path):
    imported = "\nfrom dada.config import cfg as everybodys\n"
    filled = "\n\ndef f():\n    from dada.config import cfg_from_list\n    cfg_from_list(['NUM_CLASSES=19'])\n"
    modules = spoilt(tmp_path, {"dada.evaluation.tester": imported, "dada.build": filled})
    assert {name.split(":")[0] for name in reads_of_the_global_cfg(modules)} == {"dada.evaluation.tester", "dada.build"}


def test_no_two_modules_have_one_name():
    names = Counter(name.rpartition(".")[2] for name in MODULES if not name.startswith(("dada.cli.", "dada.commands.")))
    assert [name for name, count in names.items() if count > 1] == []
