"""The site of `make docs` without MkDocs: it has every page, its links lead where those of the repository do, its API exists."""

import importlib.util
import re
from pkgutil import resolve_name

import pytest
import yaml
from pages import PAGES, ROOT

spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(navigation) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    inside = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in inside for page in pages_of(part)]


def test_every_page_is_in_the_navigation_once():
    places = {ROOT / name: page for page, name in hooks.OUTSIDE.items()}
    assert sorted(pages_of(CONFIG["nav"])) == sorted([places.get(page, page.name) for page in PAGES] + ["api.md"])


@pytest.mark.parametrize(
    "page, link, moved",
    [
        ("index.md", "[results](docs/results.md#the-demo)", "[results](results.md#the-demo)"),
        ("index.md", "![a](docs/images/demo.png)", "![a](images/demo.png)"),
        ("methods.md", "[how](../CONTRIBUTING.md#a-method)", "[how](contributing.md#a-method)"),
        ("contributing.md", "[start](README.md)", "[start](index.md)"),
        ("methods.md", "[here](#depth) and [there](https://x.org/a.md)", "[here](#depth) and [there](https://x.org/a.md)"),
        ("index.md", "![Python 3](https://x.org/badge/python-3.svg)", "`Python 3`"),
        ("datasets.md", "see [the file](../configs/toycity.yml).", "see the file."),
        ("index.md", "```\n[a](docs/a.md)\n```", "```\n[a](docs/a.md)\n```"),
    ],
)
def test_links_are_those_of_the_site(page, link, moved):
    assert hooks.with_links_of_the_site(link, page) == moved


def test_links_to_code_lead_to_the_repository_if_there_is_one():
    link = hooks.with_links_of_the_site("[file](../configs/toycity.yml)", "datasets.md", "https://example.org/dada/")
    assert link == "[file](https://example.org/dada/blob/main/configs/toycity.yml)"


@pytest.mark.parametrize("name", re.findall(r"^::: (\S+)$", hooks.api_page(), re.MULTILINE))
def test_what_the_api_lists_exists_and_is_documented(name):
    assert resolve_name(name).__doc__
