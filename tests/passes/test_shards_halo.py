"""The halo is exact: random windows, split at random, give the numbers of the unsplit op."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from slicewise.analyse import analyse
from slicewise.capture import capture
from slicewise.passes.shards import shardings
from slicewise.sharding import apply_shardings

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def layers(draw: Any) -> nn.Module:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    half = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    ceil = draw(st.booleans())
    kind = draw(st.sampled_from(["conv", "transposed", "max", "avg"]))
    if kind == "conv":
        dilation = draw(st.integers(1, 2))
        padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 2)))
        return nn.Conv2d(2, 2, kernel, stride, padding, dilation)
    if kind == "transposed":
        extra = tuple(draw(st.integers(0, size - 1)) for size in stride)
        return nn.ConvTranspose2d(2, 2, kernel, stride, half, extra)
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, half, dilation=draw(st.integers(1, 2)), ceil_mode=ceil)
    include, divisor = draw(st.booleans()), draw(st.sampled_from([None, None, 3]))
    return nn.AvgPool2d(kernel, stride, half, ceil, include, divisor)


@SETTINGS
@given(
    st.lists(layers(), min_size=1, max_size=3),
    st.integers(5, 23),
    st.integers(4, 9),
    st.sampled_from([2, 3, 4, 8]),
)
def test_windows_split_anywhere_compute_the_same(
    stack: list[nn.Module], height: int, width: int, degree: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*stack).eval()
    inputs = (torch.randn(1, 2, height, width),)
    try:
        captured = capture(model, inputs)
    except Exception:  # the windows do not fit into the image
        assume(False)
    program = captured.program
    graph, _ = analyse(program, name="m", aliases={}, dim_names={})
    with torch.no_grad():
        wanted = model(*inputs)
        for way in shardings(graph, [op.name for op in graph.ops], [degree]):
            split, _ = apply_shardings(program, [way])
            found = split.module()(*inputs)
            assert found.shape == wanted.shape
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
