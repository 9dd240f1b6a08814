"""Dates and run ids of a command line."""

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
    """Replace ``{ds}`` in the settings that say what the source reads.

    Raises:
        ConfigError: One has ``{ds}``, and no date was given.
    """
    dated: dict[str, str | list[str]] = {}
    for name in ("path", "table", "version", "where"):
        value = getattr(config.source, name)
        if "{ds}" not in str(value):
            continue
        if ds == UNDATED:
            raise ConfigError(f"source.{name}={value} contains {{ds}}; give --ds YYYY-MM-DD")
        several = isinstance(value, list)
        dated[name] = (
            [v.replace("{ds}", ds) for v in value] if several else value.replace("{ds}", ds)
        )
    if not dated:
        return config
    return config.model_copy(update={"source": config.source.model_copy(update=dated)})


def checked_ds(ds: str | None) -> str:
    """The given date, or the ds of runs without one.

    Raises:
        ConfigError: It is not a date.
    """
    if ds is None:
        return UNDATED
    try:
        if datetime.date.fromisoformat(ds).isoformat() != ds:  # 2026-W05-6 is a date too
            raise ValueError
    except ValueError:
        raise ConfigError(f"--ds {ds!r} must be a date such as 2026-01-31") from None
    return ds


def checked_run_id(run_id: str | None) -> str | None:
    """The given run id.

    Raises:
        ConfigError: It is not safe as the name of a folder.
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
    """Run id derived from settings and input: the same ones resume, new ones start a new run."""
    listing = [[file.url, file.bytes, file.version] for file in files]
    identity = fingerprint_of([config.result_settings(), ds, listing])[:8]
    return f"{ds}-night-{identity}" if by_schedule else f"{ds}-{identity}"
