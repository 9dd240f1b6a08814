"""Checkpoints: what is read back is checked, and what is damaged is done again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipeline.distributed.checkpoints import Checkpoint
from pipeline.storage import Store


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(Store(str(tmp_path)), "run", "this work")


def saved(checkpoint: Checkpoint) -> Path:
    state = {"w": torch.arange(6.0).view(2, 3)}
    history = {n: {"number": n, "loss": 0.5} for n in (2, 1)}
    checkpoint.save(state, history, complete=False)
    return Path(checkpoint.lake.locate("run/checkpoint.safetensors"))


def test_comes_back(checkpoint: Checkpoint) -> None:
    saved(checkpoint)
    state, meta = checkpoint.load()
    assert torch.equal(state["w"], torch.arange(6.0).view(2, 3))
    assert meta is not None
    assert [record["number"] for record in meta.history] == [1, 2]
    assert not meta.complete


def test_of_other_work_or_none_at_all(checkpoint: Checkpoint) -> None:
    assert checkpoint.load() == ({}, None)
    saved(checkpoint)
    other = Checkpoint(checkpoint.lake, "run", "other work")
    assert other.load() == ({}, None)


DAMAGE = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "without its tensors": lambda content: content[:-8],
    "not JSON": lambda content: content[:8] + b"x" + content[9:],
    "without meta data": lambda content: save({"w": torch.zeros(1)}),
    "of another form": lambda content: save(
        {"w": torch.zeros(1)}, metadata={"meta": '{"job_id": "this work", "history": 3}'}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(checkpoint: Checkpoint, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(checkpoint)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load() == ({}, None)
    assert "training starts over" in caplog.text
