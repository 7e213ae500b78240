"""Sizes: the dynamic dimensions of a program, and what symbolic sizes are at their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import sympy
import torch
from torch.export import ExportedProgram

from slicewise.plan import Dim


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The dynamic dimensions of a program: evaluates symbolic sizes, and prints them by name."""

    dims: Mapping[sympy.Symbol, Dim]

    def shape(self, value: torch.Tensor) -> tuple[int | str, ...]:
        """The shape with symbolic sizes as expressions over the dimensions' names."""
        names = {symbol: sympy.Symbol(dim.name) for symbol, dim in self.dims.items()}
        return tuple(
            str(expression(size).subs(names)) if isinstance(size, torch.SymInt) else int(size)
            for size in value.shape
        )

    def elements(self, value: torch.Tensor, bound: str) -> int:
        """Number of elements with every dimension at its "example" or "max"."""
        at = {symbol: getattr(dim, bound) for symbol, dim in self.dims.items()}
        return math.prod(
            int(expression(size).subs(at)) if isinstance(size, torch.SymInt) else int(size)
            for size in value.shape
        )


def sizes_of(program: ExportedProgram, dim_names: Mapping[str, str]) -> Sizes:
    """Bounds of every symbol; a dimension without an upper bound is bounded by the example."""
    dims: dict[sympy.Symbol, Dim] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for size in value.shape:
            if not isinstance(size, torch.SymInt):
                continue
            for symbol in expression(size).free_symbols:
                if symbol in dims:
                    continue
                hint = int(size.node.shape_env.backed_var_to_val[symbol])
                bounds = program.range_constraints.get(symbol)
                # torch has infinities of its own, so ask for numbers rather than against infinity.
                low, top = (bounds.lower, bounds.upper) if bounds else (None, None)
                lower = int(low) if isinstance(low, sympy.Integer) else 1
                upper = int(top) if isinstance(top, sympy.Integer) and top < 2**31 else hint
                dims[symbol] = Dim(
                    name=dim_names.get(str(symbol), str(symbol)),
                    min=min(max(lower, 0), hint),
                    max=max(upper, hint),
                    example=hint,
                )
    return Sizes(dims=dims)


def expression(size: torch.SymInt) -> sympy.Expr:
    """The sympy expression behind a symbolic size."""
    return size.node.expr
