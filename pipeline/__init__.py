"""Deep Embedded Clustering of very large Parquet tables, on Ray."""

__version__ = "0.2.0"
