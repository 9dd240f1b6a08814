"""Choosing settings without labels: what may be tried, a trial, its measures, and the rule."""
