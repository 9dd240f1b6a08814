"""k-means and agreement with known labels: the only place that knows FAISS."""
