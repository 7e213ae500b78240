"""Passes: OpGraph in, OpGraph or Plan out. One file a pass.

`partition` cuts any `OpGraph`; it needs no torch.
"""

from slicewise.passes.partitioning.partitioner import Part, Partition, partition

__all__ = ["Part", "Partition", "partition"]
