"""What ops cost in ONNX Runtime beyond their tensors: views, scratch memory, and which are cheap."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slicewise.sizes import Sizes

HALF = (torch.float16, torch.bfloat16)
# Ops whose ONNX form shares its input's memory in ONNX Runtime.
VIEWS = {
    "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unsqueeze", "aten.squeeze",
    "aten.flatten", "aten.clone", "aten.alias", "aten.detach", "aten.contiguous",
}  # fmt: skip
# Ops that only move, widen or make numbers: a slice may run them again instead of receiving them.
_MOVES = VIEWS | {
    "aten.expand", "aten.transpose", "aten.permute", "aten.t", "aten.slice", "aten.select",
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind", "aten.index", "aten.gather",
    "aten.repeat", "aten.tile", "aten._to_copy", "aten.to", "prims.convert_element_type",
    "aten.arange", "aten.full", "aten.full_like", "aten.zeros", "aten.zeros_like", "aten.ones",
    "aten.ones_like", "aten.new_ones", "aten.new_zeros", "aten.new_full", "aten.scalar_tensor",
    "aten.empty", "aten.sym_size", "aten.sym_numel", "aten.tril", "aten.triu",
}  # fmt: skip
# Element by element: cheap to run again when small, as masks and position ids are.
_ELEMENTWISE = {
    "aten.add", "aten.sub", "aten.rsub", "aten.mul", "aten.div", "aten.neg", "aten.abs", "aten.eq",
    "aten.ne", "aten.lt", "aten.le", "aten.gt", "aten.ge", "aten.bitwise_and", "aten.bitwise_or",
    "aten.bitwise_not", "aten.logical_and", "aten.logical_or", "aten.logical_not", "aten.where",
    "aten.masked_fill", "aten.clamp", "aten.clamp_min", "aten.clamp_max", "aten.minimum",
    "aten.maximum", "aten.log", "aten.exp", "aten.cos", "aten.sin", "aten.floor", "aten.remainder",
}  # fmt: skip
_SMALL_BYTES = 1 << 20
_CONVOLUTIONS = ("aten.conv", "aten._convolution")
# What computes in blocks of channels when its input comes so, and what is fused into a convolution.
_FUSED = {"aten.relu", "aten.add", "aten.leaky_relu", "aten.sigmoid", "aten.tanh", "aten.relu_",
          "aten.add_"}  # fmt: skip
_KEEPS_BLOCKS = _FUSED | {"aten.max_pool2d", "aten.avg_pool2d", "aten.upsample_nearest2d"}
_BLOCK = 16  # channels of a block with AVX-512; 8 without


def is_cheap(base: str, value: Any, sizes: Sizes) -> bool:
    """Whether running the op again costs next to nothing, compared with a message."""
    if not isinstance(value, torch.Tensor):
        return base in _MOVES or not isinstance(value, (tuple, list))
    small = sizes.elements(value, "max") * value.element_size() <= _SMALL_BYTES
    return base in _MOVES or (base in _ELEMENTWISE and small)


def copies_weights(node: fx.Node, kind: str) -> bool:
    """Whether ONNX Runtime copies the op's weights when it loads, instead of reading file pages.

    Measured (onnxruntime 1.31, x86): linear and recurrent layers and transposed convolutions pack
    theirs, 1.0 to 1.08 times the file, and convolutions over two dimensions reorder them for blocked
    layouts; other convolutions and embeddings do not. Half precision is widened, so copied.
    """
    if any(n.meta["val"].dtype in HALF for n in argument_nodes(node) if _is_tensor(n)):
        return True
    if kind.startswith(("aten.embedding", "aten.index", "aten.gather", "aten.slice")):
        return False
    if kind.startswith(_CONVOLUTIONS):
        return _is_blocked(node) or _is_transposed(node)
    return True


def loading_bytes(node: fx.Node, kind: str, sizes: Sizes) -> int:
    """Memory that ONNX Runtime needs only while it loads the op's weights, beyond the copy it keeps.

    Measured (onnxruntime 1.31): a convolution's weights are read, reordered and wrapped in a message
    before they are stored, one convolution after the other; half precision is widened first.
    """
    if not kind.startswith((*_CONVOLUTIONS, "aten.linear")):
        return 0
    weight: fx.Node = node.args[1]  # type: ignore[assignment]
    if weight.op != "placeholder":
        return 0
    value = weight.meta["val"]
    copies = (3 if _is_blocked(node) else 0) + (1 if value.dtype in HALF else 0)
    return copies * int(sizes.elements(value, "max")) * item_bytes(value)


def shares_memory(node: fx.Node, base: str) -> bool:
    """Whether the result lies where the first input does: views, and what ONNX Runtime computes with
    the convolution before it (an activation, a sum with another tensor).
    """
    if base in VIEWS:
        return True
    first = node.args[0] if node.args else None
    if base not in _FUSED or not isinstance(first, fx.Node) or len(first.users) > 1:
        return False
    if _base(first) == "aten.add":
        return shares_memory(first, "aten.add")
    return _is_blocked(first)


def _is_blocked(node: fx.Node) -> bool:
    """Whether the op is a convolution for which ONNX Runtime has a kernel in blocked layout (NCHWc).

    The conditions of its NchwcTransformer: two dimensions, and channels in steps of 4 unless they are
    few; in groups, channels of each in whole blocks, or one each.
    """
    kind = str(node.target)
    if not kind.startswith(_CONVOLUTIONS) or _is_transposed(node):
        return False
    image, weight = (n.meta["val"] for n in argument_nodes(node)[:2])
    if weight.dim() != 4:
        return False
    outer, inner = int(weight.shape[0]), int(weight.shape[1])
    groups = int(image.shape[-3]) // inner
    if groups == 1:
        return inner < _BLOCK or inner % 4 == 0
    if outer % _BLOCK:
        return False
    return (inner == 1 and outer == groups) or (inner % 4 == 0 and outer // groups % _BLOCK == 0)


def _is_transposed(node: fx.Node) -> bool:
    kind = str(node.target)
    return "transpose" in kind or (kind.startswith("aten.convolution") and bool(node.args[6]))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def scratch_bytes(node: fx.Node, kind: str, sizes: Sizes) -> int:
    """Memory that ONNX Runtime needs for an op beyond its inputs and outputs, at the largest sizes.

    Measured per op (onnxruntime 1.31): attention is computed in steps that each write all scores
    (product, softmax, and which of them are NaN; with a mask also the mask as numbers and the sum)
    beside scaled and transposed copies of query and key; a recurrent layer works on a copy with time
    first, and holds the gates of all steps (4 per number of the result in an LSTM, 3 in a GRU). For
    convolutions and what computes in blocks of channels like them, see below.
    """
    if "scaled_dot_product_attention" in kind:
        query, key = (n.meta["val"] for n in argument_nodes(node)[:2])  # may be the same
        rows = sizes.elements(query[..., 0], "max")  # batch x heads x queries
        keys = sizes.elements(key[..., 0], "max") // max(1, sizes.elements(key[..., 0, 0], "max"))
        masked = len(node.args) > 3 and node.args[3] is not None
        scores = rows * keys * (4.25 if masked else 2.25)
        copies = sizes.elements(query, "max") + 2 * sizes.elements(key, "max")
        return int((scores + copies) * item_bytes(query))
    if kind.startswith(_CONVOLUTIONS) and not _is_blocked(node):
        return _columns_bytes(node, sizes)
    if _in_blocks(node):
        return _blocks_bytes(node, sizes)
    if kind.startswith(("aten.lstm", "aten.gru")):
        sequence, result = node.all_input_nodes[0].meta["val"], node.meta["val"][0]
        gates = 4 if "lstm" in kind else 3
        numbers = sizes.elements(sequence, "max") + (1 + gates) * sizes.elements(result, "max")
        return numbers * item_bytes(sequence)
    return 0


def _in_blocks(node: fx.Node) -> bool:
    """Whether the result comes in blocks of channels: of convolutions, and of what keeps them."""
    while not _is_blocked(node):
        first = node.args[0] if node.args else None
        if _base(node) not in _KEEPS_BLOCKS or not isinstance(first, fx.Node):
            return False
        node = first
    return True


def _blocks_bytes(node: fx.Node, sizes: Sizes) -> int:
    """Copies of the image and the result of an op that computes in blocks of channels: into blocks
    unless the image came so or has few channels, and back for a reader that wants none.
    """
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    image, result = source.meta["val"], node.meta["val"]
    into = _is_blocked(node) and not _in_blocks(source) and image.shape[-3] >= _BLOCK
    back = not all(_in_blocks(user) for user in node.users)
    copied = [value for value, is_copied in ((image, into), (result, back)) if is_copied]
    return max((sizes.elements(v, "max") for v in copied), default=0) * item_bytes(image)


def _columns_bytes(node: fx.Node, sizes: Sizes) -> int:
    """What a convolution holds that computes by a matrix product, beside image and result.

    MlasConvPrepare (onnxruntime, core/mlas/lib/convolve.cpp): the patches of one image and group, but
    nothing for kernels of one point, and small segments where the result has more points than channels.
    """
    image, weight = (n.meta["val"] for n in argument_nodes(node)[:2])
    patch = int(weight[0].numel())
    if _is_transposed(node):
        return sizes.elements(image, "max") // int(weight.shape[0]) * patch * item_bytes(image)
    channels, result = int(weight.shape[0]), node.meta["val"]
    dimensions = weight.dim() - 2
    points = sizes.elements(result[(..., 0, *[slice(None)] * dimensions)], "max")
    points //= sizes.elements(result[(..., *[0] * (1 + dimensions))], "max") or 1
    groups = int(image.shape[-1 - dimensions]) // int(weight.shape[1])
    if patch == weight.shape[1] or points >= channels // groups:
        return 0
    return points * patch * item_bytes(image)


def _base(node: fx.Node) -> str:
    return ".".join(str(node.target).split(".")[:2])


def item_bytes(value: torch.Tensor) -> int:
    """Bytes per element in a running function; half precision is computed in float32."""
    return 4 if value.dtype in HALF else value.element_size()


def argument_nodes(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, in order, repeated where they are."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n))
    return found
