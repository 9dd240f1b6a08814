"""Parquet files of the input: one way to open them, and the types that the rest of it knows."""
