"""The files of a lake table: those of its own plan, never those of a listing."""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Sequence

from pipeline.config import Config
from pipeline.errors import ConfigError, InputError, PipelineError, StorageRefused, TransientError
from pipeline.input.lake_tables.entries import TableFile
from pipeline.storage import absolute, why

_LIBRARY = {"delta": "deltalake", "iceberg": "pyiceberg"}
_REFUSALS = re.compile(
    r"(status|http|code)\W{0,3}40[13]\b|forbidden|unauthori[sz]ed|access.?denied|permission", re.I
)
_PASSING = re.compile(r"time.?out|connection|unavailable|too many requests|\b50[0234]\b", re.I)


def planned_files(config: Config) -> Sequence[TableFile]:
    """The live files of ``source.table``, sorted by name.

    Raises:
        ConfigError: The library of the format is not installed.
        InputError: There is no such table or version, it has no live rows, or it needs what cannot
            be done: then nothing is read.
        TransientError: The table cannot be read for now.
    """
    source = config.source
    if importlib.util.find_spec(_LIBRARY[source.format]) is None:
        raise ConfigError(
            f"source.format={source.format} needs {_LIBRARY[source.format]}, which is not "
            f"installed; run: pip install 'dec-pipeline[{source.format}]'"
        )
    assert source.table is not None
    root = absolute(source.table).rstrip("/")
    if "/" in source.table and f"{absolute(config.output)}/".startswith(f"{root}/"):
        raise ConfigError(
            f"output={config.output} lies in source.table={source.table}, whose vacuum would "
            "remove it; give a folder outside of it"
        )
    try:
        if source.format == "iceberg":
            from pipeline.input.lake_tables import iceberg

            files = iceberg.plan(source)
        else:
            from pipeline.input.lake_tables import delta

            files = delta.plan(source)
    except PipelineError:
        raise
    except Exception as error:  # those of the libraries share no base class
        raise _failed(str(source.table), error) from error
    if not files:
        raise InputError(
            f"source.table={source.table} has no live rows"
            + (" that meet source.where" if source.where else "")
            + "; give another version or table"
        )
    return sorted(files, key=lambda file: file.name)


def _failed(table: str, error: Exception) -> PipelineError:
    """The error for a table that cannot be planned."""
    reason = f"source.table={table} cannot be read: {type(error).__name__}: {why(error)}"
    if _REFUSALS.search(reason) or isinstance(error, PermissionError):
        return StorageRefused(f"{reason}; give credentials that may read it")
    if _PASSING.search(reason):
        return TransientError(f"{reason}; the same run id continues")
    return InputError(f"{reason}; check source.table and the table itself")


def as_of(version: str | int) -> int | datetime.datetime | None:
    """A version in the config: a number, a point in time, in UTC by default, or None: the latest.

    Raises:
        ConfigError: It is neither.
    """
    text = str(version).strip()
    if text == "latest":
        return None
    if re.fullmatch(r"\d+", text):
        return int(text)
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"source.version={version} must be latest, a number, or a point in time such as "
            "2026-02-01T00:00:00Z"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
