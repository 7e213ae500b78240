"""An empty AWS account for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("boto3")
pytest.importorskip("moto")

from cloud import Cloud, cloud


@pytest.fixture
def aws() -> Iterator[Cloud]:
    """Invocations reach nobody: deploy without the smoke test, or see it fail."""
    with cloud() as found:
        yield found
