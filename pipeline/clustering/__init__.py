"""Clustering without torch or Ray: k-means, matching, quality, profiles; the only use of FAISS."""
