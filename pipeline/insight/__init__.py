"""Insight: what clusters are, as profiles, exemplars, rules and maps."""
