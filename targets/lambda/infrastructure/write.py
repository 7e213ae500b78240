"""What a bundle holds besides packages: templates, the layer's Makefile, README.md."""

from __future__ import annotations

from pathlib import Path

from slicewise.errors import TargetError
from slicewise.plan import Plan
from slicewise.templates import templates

from ..profile import Profile
from ..resources import Stack, stack_of
from .compute import LAYER, LAYER_FOLDER, digests
from .readme import TEMPLATES, readme_text
from .template import FILES, template_text

# What pip is told that the function's machine can load: Amazon Linux 2023 has glibc 2.34.
_GLIBC_MINORS = (28, 27, 17)


def write_infrastructure(
    directory: Path, plan: Plan, profile: Profile, *, stack: Stack | None = None
) -> None:
    """Write template.yaml, cloudformation.yaml, layer/Makefile and README.md into a bundle.

    `stack` is the one to describe, the bundle's own unless another name, Python or architecture is
    wanted. A stack that no template can hold gets none, and README.md says why. Raises `TargetError`
    and `BundleError` as `stack_of` does.
    """
    stack = stack or stack_of(directory, plan, architecture=profile.architecture)
    layer = directory / LAYER_FOLDER
    layer.mkdir(exist_ok=True)
    makefile = templates(TEMPLATES).get_template("Makefile.jinja")
    (layer / "Makefile").write_text(
        makefile.render(stack=stack, layer=LAYER, platforms=platforms(stack.architecture))
    )
    why_not = ""
    try:
        digest = digests(directory, stack)
        texts = {name: template_text(stack, digest, form) for name, form in FILES.items()}
    except TargetError as error:
        why_not, texts = str(error), {}
    for name, text in texts.items():
        (directory / name).write_text(text)
    (directory / "README.md").write_text(readme_text(plan, stack, profile, why_not))


def platforms(architecture: str) -> list[str]:
    """The platform tags of wheels that Lambda's functions load, newest first."""
    machine = "aarch64" if architecture == "arm64" else architecture
    tags = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
    return [*tags, f"manylinux2014_{machine}"]
