"""float16 and zlib between slices: served answers are as near to the model as `verify` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import nn

import slicewise

PACKED: dict[str, Any] = {"wire_dtype": "float16", "compress": True}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("name", "transport"), [("resnet50", "s3"), ("t5", "payload")])
def test_served_slices_differ_as_reported(name: str, transport: str, tmp_path: Path) -> None:
    case = zoo.CASES[name]()
    assert isinstance(case.inputs, dict)
    compiled = slicewise.compile(
        case.model, case.inputs, limits=case.limits, transports=[transport], **PACKED
    )
    with torch.no_grad():
        expected = case.model(**case.inputs).last_hidden_state

    reported = max(compiled.verify(), key=lambda found: found.relative)
    assert 1e-5 < reported.relative < 2e-3
    assert reported.tolerance == 5e-3
    assert f"{reported.output} differs from the model's by {reported.relative:.1e}" in str(
        compiled.notes
    )
    for edge in compiled.plan.edges:
        halved = edge.dtype == "float32" and edge.tensor in compiled.plan.internal
        assert edge.bytes * (2 if halved else 1) == compiled.graph.tensor[edge.tensor].bytes
    assert 1e-5 < relative(compiled.run(**case.inputs).last_hidden_state, expected) < 2e-3
    endpoint: Any = compiled.save(tmp_path / "bundle").serve()
    with endpoint:
        found = endpoint(**case.inputs).last_hidden_state
        if transport == "s3":
            (bucket,) = endpoint.buckets.values()
            assert "Contents" not in endpoint.platform.client("s3").list_objects_v2(Bucket=bucket)
    assert 1e-5 < relative(found, expected) < 2e-3


class Masked(nn.Module):
    """Between its slices the values of a mask are the lowest that float32 has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keys, self.values = nn.Linear(64, 64), nn.Linear(32, 64)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(torch.float32).min
        scores: torch.Tensor = self.keys(x).masked_fill(mask, lowest)[:, ::2]
        y: torch.Tensor = self.values(scores.softmax(-1))
        return y + scores.amax(-1, keepdim=True)


def test_the_lowest_float32_does_not_become_infinite(tmp_path: Path) -> None:
    model, x = Masked().eval(), torch.randn(4, 64)
    mask = torch.rand(4, 64) < 0.3
    mask[1] = True
    compiled = slicewise.compile(
        model, (x, mask), limits=slicewise.Limits(weight_bytes=17_000), **PACKED
    )

    assert len(compiled.plan.slices) == 2
    assert "float16 does not hold the values of" in compiled.notes[1]
    with compiled.save(tmp_path / "bundle").serve() as endpoint, torch.no_grad():
        found, expected = endpoint(x, mask), model(x, mask)

    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("wire_dtype", "puts"), [(None, 1), ("float16", 0)])
def test_what_fits_a_message_as_float16_needs_no_object(
    wire_dtype: str | None, puts: int, tmp_path: Path
) -> None:
    """4,717,440 bytes are the most that a message holds, and more than the edge's choice of payload."""
    torch.manual_seed(0)
    model, x = zoo.Scaled(18720).eval(), torch.randn(63, 18720)
    compiled = slicewise.compile(
        model,
        (x,),
        limits=slicewise.Limits(weight_bytes=18720 * 4 + 100),
        wire_dtype=wire_dtype,
        verify=False,
    )
    (edge,) = [edge for edge in compiled.plan.edges if edge.crosses]
    assert edge.transport == ("s3" if puts else "payload")
    assert edge.bytes == x.numel() * (4 if puts else 2)
    endpoint: Any = compiled.save(tmp_path / "bundle").serve(network="aws")
    with endpoint, torch.no_grad():
        torch.testing.assert_close(endpoint(x), model(x), rtol=0, atol=2e-3)
        counts = endpoint.platform.network_counts
    assert (counts["s3 put"].operations if "s3 put" in counts else 0) == puts
