"""What README and docs point at exists, what they tell to type works, and what is written from code is up to date."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, blocks, commands, run_here
from tiny import tiny_options

from dada import __version__
from dada.config import OPTIONS, flat_options, reference_page
from dada.config.option import Option
from dada.config.removed_options import REMOVED

README = ROOT / "README.md"


def anchors(page: Path) -> set[str]:
    """What a link to a place in the page may end with: its headings as GitHub names them, and <a id>."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", h) for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings} | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page):
    dead = []
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (place and target.suffix == ".md" and place not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / link.split("#")[0]).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8"))}
    assert {page for page in PAGES if page != README} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_scripts_and_configurations_of_the_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [s for s in re.findall(r"\b((?:scripts|benchmarks)/[\w/]+\.(?:py|sbatch|sh))\b", text) if not (ROOT / s).is_file()]
    missing += [
        c for c in re.findall(r"--cfg ([\w.]+\.yml)", text) if c != "tutorial.yml" and not (ROOT / "configs" / c).is_file()
    ]
    assert not missing


def test_every_script_and_configuration_is_on_a_page():
    text = "".join(page.read_text("utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    assert not [p.name for p in (ROOT / "scripts").glob("[!_]*.py") if f"scripts/{p.name}" not in text]
    # {gta,synthia}2cityscapes_{minent,advent}.yml stands for four files.
    for _ in range(3):
        text = re.sub(
            r"`([\w.]*)\{([\w,]+)\}([\w.{},]*)`", lambda m: " ".join(f"`{m[1]}{x}{m[3]}`" for x in m[2].split(",")), text
        )
    assert not [p.name for p in (ROOT / "configs").glob("*.yml") if f"`{p.name}`" not in text]


def test_options_named_in_the_pages_exist():
    sections = "|".join(key for key, value in OPTIONS.items() if not isinstance(value, Option))
    named = {o for page in PAGES for o in re.findall(rf"\b(?:{sections})\.[A-Z_0-9]+\b", page.read_text("utf-8"))}
    others = {"MODEL.DOMAIN_BN", "MODEL.NETWORK_NAME"}  # PLCA's, which begin alike
    assert named - others <= set(flat_options()) | set(REMOVED)  # whose going CHANGELOG and results.md tell


def test_the_badges_say_what_pyproject_says():
    project, readme = (ROOT / "pyproject.toml").read_text("utf-8"), README.read_text("utf-8")
    pythons, (torch,) = re.findall(r"Python :: (3\.\d+)", project), re.findall(r'"torch>=([\d.]+)"', project)
    (licence,) = re.findall(r'^license = { text = "(.*)" }', project, re.MULTILINE)
    badges = re.findall(r"^!\[(.*?)\]\(https://img.shields.io/badge/(.*)\)$", readme, re.MULTILINE)
    assert [text for text, _ in badges] == [
        f"Python {pythons[0]} to {pythons[-1]}",
        f"PyTorch {torch} or newer",
        f"Licence {licence}",
    ]
    assert f"| Python {pythons[0]}, PyTorch {torch} |" in readme  # beside the published implementations
    for text, address in badges:
        shown = address.replace("%20", " ").replace("--", "~").rpartition("-")[0].replace("-", " ").replace("~", "-")
        assert shown.lower() == text.lower()


def test_no_page_names_a_place_on_a_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(?:home|root|work|Users)/", page.read_text("utf-8")), page.name


def test_that_nothing_was_measured_on_a_gpu_is_said_once_or_no_more():
    said = [page.name for page in PAGES for _ in re.findall("not measured on a GPU", page.read_text("utf-8"), re.IGNORECASE)]
    assert said in ([], ["performance.md"])


# ---- written from code


def test_the_list_of_options_is_what_the_table_says():
    advice = "run python scripts/config_reference.py"
    assert reference_page.PAGE.read_text(encoding="utf-8") == reference_page.reference(), advice
    assert anchors(reference_page.PAGE) >= {reference_page.anchor(name) for name in flat_options()}


def test_an_option_is_listed_with_all_that_is_known_of_it(monkeypatch):
    monkeypatch.setitem(OPTIONS, "WIDE", Option((1, 2), "Either | or, *.", unit="pixels", length=2, minimum=1, maximum=9))
    (entry,) = [line for line in reference_page.reference().splitlines() if "`WIDE`" in line]
    assert entry == r'- <a id="wide"></a>**`WIDE`**: `[1, 2]` (list of 2 int, 1 to 9; pixels)<br>Either | or, \*.'


@pytest.mark.parametrize(
    "option, module, registry",
    [
        ("SOURCE", "dada.dataset", "DATASETS"),
        ("TRAIN.DA_METHOD", "dada.domain_adaptation.objectives", "METHODS"),
        ("TRAIN.MODEL", "dada.model", "MODELS"),
    ],
)
def test_the_sentence_of_an_option_names_all_that_it_may_be(option, module, registry):
    names = set(getattr(importlib.import_module(module), registry))
    assert names <= set(re.findall(r"[\w-]+", flat_options()[option].meaning))


def test_changelog_and_citation_are_of_this_version():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[:2] == ["Unreleased", __version__]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    cited = {i["value"] for reference in citation["references"] for i in reference["identifiers"]}
    assert {f"arXiv:{number}" for number in re.findall(r"arXiv:([\d.]+\d)", README.read_text("utf-8"))} <= cited


def test_the_containers_copy_what_exists_and_ask_for_no_versions_of_their_own():
    docker, apptainer = ((ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "apptainer.def"))
    copied = [source for line in re.findall(r"^COPY (.*)$", docker, re.MULTILINE) for source in line.split()[:-1]]
    files = re.search(r"^%files\n(.*?)^%", apptainer, re.DOTALL | re.MULTILINE)[1]
    copied += [source for source, _ in map(str.split, files.strip().splitlines())]
    assert copied.count("requirements.txt") == 2 and all((ROOT / source).exists() for source in copied)
    for text in (docker, apptainer):
        installed = re.findall(r"pip install (.*)", text)
        assert len(installed) == 2 and not any("==" in line for line in installed)
    (system,) = set(re.findall(r"^(?:FROM|From:) nvidia/cuda:[\d.]+-base-ubuntu([\d.]+)$", docker + apptainer, re.MULTILINE))
    python = {"22.04": "3.10", "24.04": "3.12"}[system]  # which python3-venv is there
    assert f"Python :: {python}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert int(re.findall(r"^USER (\d+)$", docker, re.MULTILINE)[-1]) != 0  # the last user is not root
    settings = [set(re.findall(r"\b([A-Z_]+=/[\w./-]+)", text)) for text in (docker, apptainer)]
    assert settings[0] == settings[1] and len(settings[0]) > 4  # caches


def test_a_container_is_given_every_folder_that_a_shipped_configuration_reads_or_writes():
    paths = [
        text for path in (ROOT / "configs").glob("*.yml") for text in re.findall(r"RESTORE_FROM: (\S+)/", path.read_text("utf-8"))
    ]
    folders = {"data", "experiments", *paths}
    assert "pretrained_models" in folders
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Dockerfile", "apptainer.def")}
    for name, text in texts.items():
        assert set(re.findall(r"(\w+):/dada/\1\b", text)) == folders, f"mounted in {name}"
        made = [set(line.split()) for line in re.findall(r"mkdir -p ((?:\w+ ?)+)", text)]
        assert made and all(line == folders for line in made), f"made in {name}"


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"]


def test_the_workflow_tests_every_python_that_the_package_says_it_runs_on_and_its_oldest_torch():
    jobs = workflow("tests")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert jobs["tests"]["strategy"]["matrix"]["python"] == re.findall(r"Python :: (3\.\d+)", project)
    oldest = " ".join(step.get("run", "") for step in jobs["oldest-torch"]["steps"])
    for package in ("torch", "torchvision"):
        assert f"{package}=={re.search(rf'{package}>=([0-9.]+)', project)[1]}.0" in oldest


@pytest.mark.parametrize("tag, fits", [(f"v{__version__}", True), ("v99.0.0", False)])
def test_a_release_has_its_part_of_the_changelog_and_a_tag_of_another_version_is_refused(tag, fits, tmp_path):
    (step,) = [step["run"] for step in workflow("release")["build"]["steps"] if "CHANGELOG.md" in step.get("run", "")]
    for path in ("CHANGELOG.md", "dada/__init__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    ended = subprocess.run(["bash", "-ec", step], cwd=tmp_path, env={**os.environ, "GITHUB_REF_NAME": tag})
    assert (ended.returncode == 0) is fits
    if fits:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        part = re.search(rf"^## {re.escape(__version__)}[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)[1]
        assert (tmp_path / "notes.md").read_text(encoding="utf-8") == part


# ---- what the README tells to type


def test_the_commands_of_the_readme_work(city, tmp_path, monkeypatch, capsys, run_script):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DADA_TRACEBACK", "1")
    more = {
        "make_toycity": ["--source", "1", "--target", "2", "--val", "1", "--size", "64x32", "--workers", "1"],
        "check_data": ["--set", *tiny_options(city, tmp_path), "--workers", "0", "--limit", "1"],
        "explore": ["--pairs", "1"],
    }
    run = ["--set", *tiny_options(city, tmp_path), "TRAIN.RESTORE_FROM=random", "TRAIN.MAX_ITERS=1", "TRAIN.RECOMPUTE=False"]
    # The network of make demo is one of the commands further down.
    found = sorted((c for c in commands(README) if "scripts/" in c), key=lambda c: "demo/snapshots" in c)
    for command in found:
        name = re.search(r"scripts/(\w+)\.py", command)[1]
        command = re.sub(r"experiments/demo/\S+", shlex.quote(str(tmp_path / "snapshots/tiny/model_1.pth")), command)
        run_here(command, more.get(name, run), run_script)
    assert "mIoU 16" in capsys.readouterr().out
    assert (tmp_path / "explorer.html").is_file() and (tmp_path / "data/toycity/toycity.json").is_file()
    assert "make demo" in "".join(blocks(README, "bash"))
