"""Input: shards are found, pinned, cut into slices and read."""
