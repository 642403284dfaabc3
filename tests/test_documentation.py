"""What README and docs point at exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#][^)]*)\)", page.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link.split("#")[0]).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_scripts_and_configurations_of_the_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [s for s in re.findall(r"python ((?:scripts|benchmarks)/[\w/]+\.py)", text) if not (ROOT / s).is_file()]
    missing += [c for c in re.findall(r"--cfg ([\w.]+\.yml)", text) if not (ROOT / "configs" / c).is_file()]
    assert not missing


def test_options_named_in_the_pages_exist():
    from dada.config import flat_options

    named = {o for page in PAGES for o in re.findall(r"\b(?:TRAIN|TEST|DATA_TRANSFORM)\.[A-Z_0-9]+", page.read_text("utf-8"))}
    assert named <= set(flat_options())
