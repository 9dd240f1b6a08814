"""The input as pinned shards and slices, and the output as part files and snapshots."""
