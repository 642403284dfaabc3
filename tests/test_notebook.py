"""The notebook as a reader runs it, cell after cell in one process; small, and at full size with -m slow."""

import ast
import json
import re
import sys
from types import ModuleType

import pytest
from pages import ROOT
from tiny import TINY_NETWORK

NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
SMALL = {"ITERATIONS = 120": "ITERATIONS = 2", '"timm:tf_efficientnet_lite0"': f'"{TINY_NETWORK}"', '"imagenet"': '""'}
SMALL |= {'"60"': '"2"', '"50"': '"4"', '"10"': '"2"', '"256x128"': '"64x32", "--workers", "1"'}
SMALL |= {"SIZE=128": "SIZE=32", "[256,128]": "[64,32]"}


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def run(replaced: dict[str, str], folder, monkeypatch) -> list:
    """Run all cells in `folder`; returns what they displayed."""
    shown: list = []
    display = ModuleType("IPython.display")
    display.display = lambda *things: shown.extend(things)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(folder)
    namespace: dict = {}
    left = set(replaced)
    for number, text in enumerate(cells("code")):
        for old, new in replaced.items():
            if old in text:
                text, left = text.replace(old, new), left - {old}
        exec(compile(text, f"cell {number}", "exec"), namespace)
    assert not left, "the notebook no longer says what the test makes small"
    return shown


def test_it_is_a_notebook_without_the_outputs_of_a_machine():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids)
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))


def test_its_links_lead_to_pages():
    links = [link for text in cells("markdown") for link in re.findall(r"\]\(([^)#]+)", text)]
    assert links and all((ROOT / "docs" / link).is_file() for link in links)


def test_its_cells_run_in_order(tmp_path, monkeypatch, capsys):
    shown = run(SMALL, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert [picture.size for picture in shown] == [(64, 32)] * 4
    assert "adapted: mIoU over 16 classes" in said
    share, before, after = map(
        float, re.search(r"(\d+) % of the cycles.*?loss ([\d.]+), .* ([\d.]+)$", said, re.S | re.M).groups()
    )
    assert 80 < share < 95 and after < before - 0.5


@pytest.mark.slow
def test_its_cells_run_as_they_stand(tmp_path, monkeypatch, capsys):
    assert len(run({}, tmp_path, monkeypatch)) == 4
