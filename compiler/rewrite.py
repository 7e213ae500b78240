"""Rewrite: the splits that `slicewise.passes.split` decided on, carried out on a captured program.

The result is a new program on views of the same weights: nothing is copied, and neither the captured
program nor the model changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram

from slicewise.draft import Draft, Editor
from slicewise.passes.split import Split
from slicewise.pieces import write_pieces


def apply_splits(program: ExportedProgram, splits: Sequence[Split]) -> ExportedProgram:
    """A program that computes the same from the pieces of the split weights.

    Each op of a split becomes one op per piece and what puts their results together; all of them name
    the module and the line of the op. Pieces of tied weights stay tied. Weights that nothing reads any
    more are gone.
    """
    if not splits:
        return program
    draft = Draft(program)
    for split in splits:
        for use in split.uses:
            node = draft.node[use.op]
            weight = draft.argument(node, split.weight)
            with draft.graph.inserting_before(node):
                result = write_pieces(
                    Editor(draft, node, tied=len(split.uses) > 1),
                    node,
                    weight,
                    axis=use.axis,
                    combine=use.combine,
                    sizes=split.sizes,
                    names=split.pieces,
                )
            draft.replace(node, result)
    return draft.finish()
