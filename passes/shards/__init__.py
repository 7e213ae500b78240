"""Shards: groups of ops that several slices split between them."""

from slicewise.passes.shards.measure import ShardPart
from slicewise.passes.shards.sharding import Sharding, sharding, shardings
from slicewise.passes.shards.sweep import Swept, sweep

__all__ = ["ShardPart", "Sharding", "Swept", "sharding", "shardings", "sweep"]
