"""The partitioner: `partition` cuts an `OpGraph` into slices."""

from slicewise.passes.partitioning.partitioner import Part, Partition, partition

__all__ = ["Part", "Partition", "partition"]
