"""A checkpoint into another dtype, another layout, other shards: the same model in other bytes."""
