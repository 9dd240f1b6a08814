"""Base of all artifacts: frozen records, stored files, fingerprints."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from pipeline.schema import NAME_PATTERN
from pipeline.storage import Store, sha256


def _inside(path: str) -> str:
    if not path.isprintable() or {"", ".", ".."} & set(path.replace("\\", "/").split("/")):
        raise ValueError("must be a path below the output, without '.' or '..'")
    return path


# Names and paths are checked when they are read back: what they name is opened or removed.
Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
LakePath = Annotated[str, AfterValidator(_inside)]


class Record(BaseModel):
    """A frozen part of an artifact; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(Record):
    """A file of a run: path below the output, digest and size."""

    path: LakePath
    sha256: str
    bytes: int


def store_file(lake: Store, path: str, content: bytes) -> StoredFile:
    """Write a file of an artifact."""
    lake.write_bytes(path, content)
    return StoredFile(path=path, sha256=sha256(content), bytes=len(content))


class Artifact(Record):
    """The result of a stage."""

    @property
    def fingerprint(self) -> str:
        """Digest of the content: equal fingerprints mean equal artifacts."""
        return fingerprint_of(self.model_dump(mode="json"))


def utc_now() -> str:
    """The time by this machine's clock, for people: ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def fingerprint_of(content: Any) -> str:
    """Digest of a JSON value; the order of keys does not matter."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
