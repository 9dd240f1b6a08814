"""The settings that each stage reads: a change redoes the stages that read it, and no others."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

import pipeline.stages
from pipeline.config import Config
from pipeline.engine import Stage

STAGES: dict[str, Stage[Any, Any]] = {
    stage.name: stage
    for module in pkgutil.walk_packages(pipeline.stages.__path__, "pipeline.stages.")
    for stage in vars(importlib.import_module(module.name)).values()
    if isinstance(stage, Stage)
}
LEAST: dict[str, Any] = {
    "source": {"path": "in", "features": ["x"]},
    "output": "out",
    "clusters": 3,
}


@pytest.mark.parametrize(
    ("section", "name", "value", "stages"),
    [
        ("refine", "learning_rate", 2e-3, {"refine", "decide", "identify"}),
        ("refine", "select", "dec", {"select", "decide", "identify"}),
        ("model", "embedding", 3, {"pretrain", "decide", "identify"}),
        ("source", "scaling", "minmax", {"sample", "decide", "identify"}),
        ("source", "keys", ["id"], {"pin"}),
        ("lake", "format", "delta", {"assign", "publish"}),
        ("explain", "exemplars", 2, {"assign"}),
        ("explain", "tree_depth", 2, {"describe"}),
        ("gate", "max_psi", 1.0, {"gate", "decide"}),
        ("execution", "workers", 7, set()),
    ],
)
def test_stages_that_read_a_setting(section: str, name: str, value: Any, stages: set[str]) -> None:
    before = Config.model_validate(LEAST)
    changed = LEAST.get(section, {}) | {name: value}
    after = Config.model_validate(LEAST | {section: changed})
    found = {n for n, stage in STAGES.items() if stage.settings(before) != stage.settings(after)}
    assert found == stages
