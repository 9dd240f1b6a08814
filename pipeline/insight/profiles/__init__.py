"""Profiles of clusters: what is collected of a slice, merged, stored, and shown as tables."""
