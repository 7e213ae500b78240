"""Archives: equal contents, equal bytes."""

from __future__ import annotations

import hashlib
import importlib
import os
import zipfile
from pathlib import Path

archive = importlib.import_module("slicewise.targets.lambda.packaging.archive")


def test_equal_contents_make_equal_bytes_whenever_and_whoever_wrote_them(tmp_path: Path) -> None:
    made = []
    for number, order in enumerate((["b.py", "a/c.py"], ["a/c.py", "b.py"])):
        folder = tmp_path / str(number)
        (folder / "a").mkdir(parents=True)
        for name in order:
            (folder / name).write_text(f"print({name!r})\n" * 100)
            os.utime(folder / name, (1e9 + number, 1e9 + number))
            (folder / name).chmod(0o600 + 0o011 * number)
        contents = {name: folder / name for name in order}
        made.append(archive.write_zip(tmp_path / f"{number}.zip", contents))

    first, second = made
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest() == second.sha256
    assert first.unzipped_bytes == sum(len(f"print({n!r})\n") * 100 for n in ("b.py", "a/c.py"))
    assert first.zip_bytes == first.path.stat().st_size


def test_every_file_can_be_read_by_lambdas_user(tmp_path: Path) -> None:
    archive.write_zip(tmp_path / "x.zip", {"a.py": b"1"})

    with zipfile.ZipFile(tmp_path / "x.zip") as found:
        assert found.read("a.py") == b"1"
        assert found.infolist()[0].external_attr >> 16 == 0o100644


def test_weights_that_do_not_shrink_are_stored_and_others_deflated(tmp_path: Path) -> None:
    size = 10 * 2**20
    for name, data in (("noise", os.urandom(size)), ("zeros", bytes(size))):
        (tmp_path / name).write_bytes(data)

    archive.write_zip(tmp_path / "x.zip", {n: tmp_path / n for n in ("noise", "zeros")})

    with zipfile.ZipFile(tmp_path / "x.zip") as found:
        assert found.getinfo("noise").compress_type == zipfile.ZIP_STORED
        assert found.getinfo("zeros").compress_type == zipfile.ZIP_DEFLATED
        assert found.testzip() is None
