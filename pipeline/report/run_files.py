"""Files of a run for its report: what is missing or of another version is None, not an error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.models import Comparison
from pipeline.artifacts.nights import Champion, NightDecision, Serving
from pipeline.artifacts.records import LakePath, StoredFile
from pipeline.artifacts.summaries import Summary
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.lake.receipts import Rewritten, read_receipts, replacements
from pipeline.registry.entries import replaced_by
from pipeline.runs import RunFolder
from pipeline.storage import sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFiles(RunFolder):
    """A run's folder; every file is read once."""

    @cached_property
    def summary(self) -> Summary:
        """Summary of the run; see ``read_summary`` for its errors."""
        return self.read_summary()

    @cached_property
    def config(self) -> Config | None:
        """Settings of the run."""
        try:
            return self.read_config()
        except (FileNotFoundError, ValueError):
            return None

    @cached_property
    def manifest(self) -> Manifest | None:
        """Artifact of the stage pin."""
        return self.found("pin", Manifest)

    @cached_property
    def comparison(self) -> Comparison | None:
        """Artifact of the stage evaluate."""
        return self.found("evaluate", Comparison)

    @cached_property
    def champion(self) -> Champion | None:
        """The champion that labelled the rows."""
        if serving := self.found("promote", Serving):
            return serving.champion
        decision = self.found("decide", NightDecision)
        return decision.champion if decision else None

    def table(
        self,
        file: StoredFile | None,
        columns: Sequence[str] | None = None,
        rows: pc.Expression | None = None,
    ) -> pa.Table | None:
        """A table of the run, without forgotten rows."""
        if file is None:
            return None
        try:
            return self.lake.read_table(self.as_left(file).path, columns, rows)
        except (OSError, pa.ArrowInvalid, PipelineError):
            log.warning("%s cannot be read", self.lake.locate(file.path), exc_info=True)
            return None

    def as_left(self, file: StoredFile) -> StoredFile:
        """A file, or its replacement where rows were forgotten."""
        return replaced_by(file, self._replaced)[0]

    @cached_property
    def _replaced(self) -> dict[LakePath, Rewritten]:
        return dict(replacements(read_receipts(self.lake)))

    @property
    def map_file(self) -> StoredFile | None:
        """The map, without forgotten rows; None where it has to be made."""
        path, marker = self.stage_path("report", "map.parquet"), self.marker("report")
        try:
            file = StoredFile.model_validate(marker.artifact["map"] if marker else None)
        except (KeyError, ValueError):
            file = StoredFile(path=path, sha256="", bytes=0)
        path = self.as_left(file).path
        try:
            content = self.lake.read_bytes(path)
        except FileNotFoundError:
            return None
        return StoredFile(path=path, sha256=sha256(content), bytes=len(content))
