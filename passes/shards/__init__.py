"""Shards: groups of ops that several slices split between them."""

from slicewise.passes.shards.measure import ShardPart
from slicewise.passes.shards.sharding import Sharding, shardings

__all__ = ["ShardPart", "Sharding", "shardings"]
