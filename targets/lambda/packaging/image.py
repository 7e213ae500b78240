"""Image: what a bundle holds so that `docker build` makes one image of all its functions.

Dockerfile, .dockerignore
image/part.py             the handler: goes on to that of the function's part
layer/requirements.txt    the runtime, with hashes
layer/strip.py            takes from it what is not needed, as for a layer
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from slicewise.templates import templates

from ..resources import PYTHONS
from .archive import tree_sha256
from .wheels import REQUIREMENTS, requirements_of

_STRIP = Path(__file__).with_name("strip.py")
_CONTEXT = ("Dockerfile", "functions", "image", "layer")  # all that docker sees, see .dockerignore
_FILES = {
    "Dockerfile": "Dockerfile.jinja",
    ".dockerignore": "dockerignore.jinja",
    "image/part.py": "part.py.jinja",
}


def image_tag(directory: Path, python: str, architecture: str) -> str:
    """The tag of a bundle's image: equal contents, Python and architecture have the same."""
    contents = tree_sha256(*(directory / name for name in _CONTEXT))
    return f"{contents[:40]}-python{python}-{architecture}"


def contents_of(tag: str) -> str:
    """The part of an image's tag that tells its contents."""
    return tag.partition("-")[0]


def write_image_files(
    directory: Path, *, model: str, stack: str, parts: Sequence[str], is_encrypted: bool
) -> None:
    """Write them into a bundle whose functions are `parts`."""
    texts = templates("slicewise.targets.lambda.packaging")
    values = {"model": model, "stack": stack, "parts": tuple(parts), "pythons": PYTHONS}
    for name, template in _FILES.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts.get_template(template).render(values))
    (directory / "layer").mkdir()
    wanted = requirements_of(is_encrypted)
    text = "".join(source.read_text() for source in wanted)
    (directory / "layer" / REQUIREMENTS.name).write_text(text)
    shutil.copyfile(_STRIP, directory / "layer" / _STRIP.name)
