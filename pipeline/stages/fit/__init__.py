"""Stages that fit, judge and promote a model."""
