"""Checkpoints of a training, which any later cluster can resume from.

One safetensors file, replaced in one step: weights and history are always of the same pass.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.artifacts.records import Record
from pipeline.errors import PipelineError
from pipeline.storage import Store, why

log = logging.getLogger(__name__)


class CheckpointMeta(Record):
    """Metadata in a checkpoint's file."""

    job_id: str
    history: tuple[dict[str, Any], ...]
    complete: bool


@dataclass(frozen=True)
class Checkpoint:
    """The last checkpoint of one training."""

    lake: Store
    folder: str  # folder below the output
    job_id: str  # id of the work: a checkpoint of other work is not resumed

    @property
    def path(self) -> str:
        """Path of the file below the output."""
        return f"{self.folder}/checkpoint.safetensors"

    def save(
        self, state: dict[str, Tensor], history: dict[int, dict[str, Any]], *, complete: bool
    ) -> None:
        """Replace the checkpoint by this state and the records so far, by number."""
        records = tuple(history[number] for number in sorted(history))
        meta = CheckpointMeta(job_id=self.job_id, history=records, complete=complete)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        content = save(state, metadata={"meta": meta.model_dump_json()})
        self.lake.write_bytes(self.path, content)

    def load(self) -> tuple[dict[str, Tensor], CheckpointMeta | None]:
        """State and metadata; empty where there is no checkpoint of this work."""
        try:
            content = self.lake.read_bytes(self.path)
        except FileNotFoundError:
            return {}, None
        header_bytes = int.from_bytes(content[:8], "little")  # length, JSON header, tensors
        try:
            header = json.loads(content[8 : 8 + header_bytes])
            meta = CheckpointMeta.model_validate_json(header["__metadata__"]["meta"])
            state = load(content)
        except (ValueError, KeyError, TypeError, SafetensorError) as damage:
            path = self.lake.locate(self.path)
            log.warning("%s cannot be read, training starts over: %s", path, why(damage))
            return {}, None
        return (state, meta) if meta.job_id == self.job_id else ({}, None)

    def records(self) -> int:
        """Number of records; 0 while it cannot be read."""
        with contextlib.suppress(OSError, PipelineError):
            meta = self.load()[1]
            return len(meta.history) if meta else 0
        return 0
