"""Lock: write requirements.txt and encryption.txt anew, with the newest versions of what functions need:

    python -m slicewise.targets.lambda.packaging.lock

It downloads all wheels that Lambda's Pythons and architectures may take and notes their hashes. Versions
of requirements.txt may be given: `... lock onnxruntime==1.31.1 numpy==2.5.5 pybase64==1.5.1`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from slicewise.errors import TargetError

from ..resources import ARCHITECTURES, PYTHONS
from .archive import file_sha256
from .wheels import ENCRYPTION, REQUIREMENTS, pip_download

# onnxruntime also declares flatbuffers, packaging and protobuf, which inference never imports.
NEEDED = ("numpy", "onnxruntime", "pybase64")
# Of encrypted bundles. cffi also declares pycparser, which only those need who compile with it.
FOR_ENCRYPTION = ("cffi", "cryptography")
_HEAD = """\
# What {whose} function holds besides its own code, for Python {pythons} on {architectures}.
# Written by `python -m slicewise.targets.lambda.packaging.lock`.
# Install with --no-deps: some of these declare packages that functions never import.
"""


def lock(needed: Sequence[str] = NEEDED, path: Path = REQUIREMENTS) -> None:
    """Write the requirements with the hashes of every wheel. Raises `TargetError`."""
    from packaging.utils import parse_wheel_filename

    hashes: dict[tuple[str, str], set[str]] = {}
    with tempfile.TemporaryDirectory(prefix="slicewise-lock-") as scratch:
        for python in PYTHONS:
            for architecture in ARCHITECTURES:
                done = pip_download(python, architecture, Path(scratch), *needed)
                if done.returncode:
                    raise TargetError(
                        f"pip found no wheels for Python {python} on {architecture}:\n{done.stderr}"
                    )
        for wheel in sorted(Path(scratch).glob("*.whl")):
            name, version, _, _ = parse_wheel_filename(wheel.name)
            hashes.setdefault((name, str(version)), set()).add(file_sha256(wheel))
    names = [name for name, _ in hashes]
    if len(names) != len(set(names)):
        raise TargetError(
            f"no one version of each fits all platforms: {sorted(hashes)}. Give the versions to lock."
        )
    whose = "every" if path == REQUIREMENTS else "an encrypted bundle's"
    head = _HEAD.format(
        whose=whose, pythons=" and ".join(PYTHONS), architectures=" and ".join(ARCHITECTURES)
    )
    lines = [
        " \\\n    ".join(
            [f"{name}=={version}", *(f"--hash=sha256:{each}" for each in sorted(found))]
        )
        for (name, version), found in sorted(hashes.items())
    ]
    path.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    lock(sys.argv[1:] or NEEDED)
    lock(FOR_ENCRYPTION, ENCRYPTION)
