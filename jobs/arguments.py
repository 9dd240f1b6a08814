"""Dates and run ids as they are given on a command line."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence

from pipeline.artifacts.records import fingerprint_of
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.schema import NAME_PATTERN, UNDATED
from pipeline.storage import FoundFile


def of_ds(config: Config, ds: str) -> Config:
    """The settings of one date: ``{ds}`` in the locations of the source is replaced by it.

    Raises:
        ConfigError: There is a place for a date, and none was given.
    """
    path = config.source.path
    if not any("{ds}" in location for location in ([path] if isinstance(path, str) else path)):
        return config
    if ds == UNDATED:
        raise ConfigError(f"source.path={path} has a place for the date; give --ds YYYY-MM-DD")
    if isinstance(path, str):
        dated: str | list[str] = path.replace("{ds}", ds)
    else:
        dated = [location.replace("{ds}", ds) for location in path]
    return config.model_copy(update={"source": config.source.model_copy(update={"path": dated})})


def checked_ds(ds: str | None) -> str:
    """A logical date, or the name of runs without one.

    Raises:
        ConfigError: It is no date.
    """
    if ds is None:
        return UNDATED
    try:
        if datetime.date.fromisoformat(ds).isoformat() != ds:  # 2026-W05-6 is a date as well
            raise ValueError
    except ValueError:
        raise ConfigError(f"--ds {ds!r} must be a date such as 2026-01-31") from None
    return ds


def checked_run_id(run_id: str | None) -> str | None:
    """A run id that is safe as a folder name.

    Raises:
        ConfigError: It is not.
    """
    if run_id is not None and not re.fullmatch(NAME_PATTERN, run_id):
        raise ConfigError(
            f"--run-id {run_id!r} must be letters, digits, '.', '_' and '-', at most 100 of them, "
            "and start with a letter or digit"
        )
    return run_id


def default_run_id(
    config: Config, ds: str, files: Sequence[FoundFile], *, by_schedule: bool = False
) -> str:
    """The same for the same settings and input: running again resumes, new data runs anew."""
    listing = [[file.url, file.bytes, file.version] for file in files]
    identity = fingerprint_of([config.result_settings(), ds, listing])[:8]
    return f"{ds}-night-{identity}" if by_schedule else f"{ds}-{identity}"
