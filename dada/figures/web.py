"""What pages are put together from that need nothing beside themselves."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from typing import Any

from PIL import Image


def page_part(package: str, name: str) -> str:
    """The text of a file that lies beside the modules of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """The picture as a JPEG or PNG to stand in a page; `options` of Image.save."""
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever the names in it are."""
    return json.dumps(value).replace("<", "\\u003c")
