"""Ops that are replaced right after the capture: ONNX Runtime crashes on what torch.onnx makes of them.

`nn.EmbeddingBag` becomes a Loop over a sequence of tensors. Loading one of mode "mean" and fixed sizes
ends the process with a segmentation fault, which no `except` can turn into a message. A product with
a mask needs no loop; it takes bags times indices numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def without_embedding_bags(program: ExportedProgram) -> ExportedProgram:
    """The program with every embedding bag as a lookup and one product, sum or maximum."""
    import torch

    aten = torch.ops.aten
    table: dict[Any, Any] = {
        aten.embedding_bag.default: _embedding_bag,
        aten.embedding_bag.padding_idx: _embedding_bag,
        aten._embedding_bag.default: _embedding_bag,
        aten._embedding_bag_forward_only.default: _embedding_bag,
    }
    if not any(node.target in table for node in program.graph.nodes):
        return program
    decomposed: ExportedProgram = program.run_decompositions(table)
    return decomposed


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,  # noqa: ARG001 - of training
    mode: int = 0,
    sparse: bool = False,  # noqa: ARG001 - of training
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As torch's own; its last three results serve the gradient and are empty here.

    A place belongs to the last bag that begins at or before it. Bags without any place are zeros.
    """
    import torch

    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0], dtype=offsets.dtype)
    bag = (starts[:, None] <= places[None, :]).sum(0) - 1
    inside = bag[None, :] == torch.arange(starts.shape[0])[:, None]
    if padding_idx is not None:  # -1 of `_embedding_bag` says none, and no index is -1
        inside = inside & (indices != padding_idx)[None, :]
    rows = torch.ops.aten.embedding.default(weight, indices)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    count = inside.sum(1)[:, None]
    if mode == 2:
        lowest = torch.where(inside[:, :, None], rows[None], -torch.inf).amax(1)
        result = torch.where(count > 0, lowest, 0.0)
    else:
        result = inside.to(rows.dtype) @ rows
        if mode == 1:
            result = result / count.clamp(min=1)
    empty = offsets.new_empty(0)
    return result, empty, empty, empty
