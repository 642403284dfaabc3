"""The site of `make docs`: pages that lie outside docs/, links as MkDocs wants them, and the API from docstrings.

The pages stay as they read in the repository; mkdocs.yml calls these functions while it builds the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that lie outside docs/.
OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
API = {
    "Use a trained network": ["dada.segmenter.Segmenter", "dada.segmenter.Prediction"],
    "Cycle association": [
        "dada.domain_adaptation.cycle_association.cycle_association_loss",
        "dada.domain_adaptation.cycle_association.find_cycles",
        "dada.domain_adaptation.cycle_association.spatial_aggregation",
        "dada.domain_adaptation.losses",
    ],
    "Train": ["dada.training.loop.train", "dada.runs.Run", "dada.runs.run_of"],
    "Extend": [
        "dada.domain_adaptation.objectives.Term",
        "dada.domain_adaptation.step.Step",
        "dada.dataset.published.PublishedDataset",
        "dada.model.segmentation_model.SegmentationModel",
    ],
}


def on_config(config: Any) -> Any:
    from pymdownx.slugs import slugify

    config["mdx_configs"]["toc"]["slugify"] = slugify(case="lower")  # as GitHub names headings
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page, name in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=api_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return with_links_of_the_site(markdown, page.file.src_uri, config["repo_url"])


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Short code stays on one line, and a figure opens at its own size, which a phone needs."""
    html = re.sub(r"<code>([^<]{1,30})</code>", r'<code class="whole">\1</code>', html)
    return re.sub(r'<img\b[^>]*\bsrc="(images/[^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', html)


def api_page() -> str:
    sections = [f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names) for title, names in API.items()]
    return "# Python API\n\n" + "\n\n".join(sections) + "\n"


def with_links_of_the_site(markdown: str, page: str, repository: str | None = None) -> str:
    """Links between pages lead to their places in the site; those to code lead to the repository, or become plain text.

    So do badges, which would be fetched from elsewhere.

    Args:
        page: its name in the site.
        repository: address of the repository, if it has one.
    """
    origin = ROOT / OUTSIDE.get(page, f"docs/{page}")
    places = {ROOT / name: name_in_site for name_in_site, name in OUTSIDE.items()}

    def moved(match: re.Match[str]) -> str:
        text, link = match[1], match[2]
        path, hash_, place = link.partition("#")
        if text.startswith("!") and "://" in link:
            return f"`{text[2:-1]}`"
        if "://" in link or not path:
            return match[0]
        target = Path(os.path.normpath(origin.parent / path))
        if target in places:
            return f"{text}({places[target]}{hash_}{place})"
        if target.is_relative_to(ROOT / "docs"):
            return f"{text}({target.relative_to(ROOT / 'docs').as_posix()}{hash_}{place})"
        if repository:
            return f"{text}({repository.rstrip('/')}/blob/main/{target.relative_to(ROOT).as_posix()}{hash_}{place})"
        return text[1:-1]

    # Fenced blocks are left alone.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if k % 2 else re.sub(r"(!?\[[^\]]*\])\(([^)\s]*)\)", moved, part) for k, part in enumerate(parts))
