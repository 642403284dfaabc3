"""Building blocks of self-contained HTML pages."""

from __future__ import annotations

import base64
import io
import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image

from dada.figures.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page_part(package: str, name: str) -> str:
    """The text of a file that lies beside the modules of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """The picture as a JPEG or PNG to stand in a page; `options` of Image.save."""
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def shown_in_page(picture: Image.Image, kind: str, **options: Any) -> str:
    """Attributes of an <img> of `data_uri`. With its size, nothing on the page jumps when it is decoded."""
    return f'src="{data_uri(picture, kind, **options)}" width="{picture.width}" height="{picture.height}"'


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever the names in it are."""
    return json.dumps(value).replace("<", "\\u003c")


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> of a page, in the page's colours: its ink for black, --run0, --run1, ... for those of lines."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dada"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", text, flags=re.DOTALL)  # HTML knows without
    for k, colour in enumerate(COLOURS):
        text = text.replace(colour.lower(), f"var(--run{k})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
