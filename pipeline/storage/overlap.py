"""Whether an output and an input lie in one another, also through links and globs."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
from collections.abc import Sequence
from typing import Literal

from pipeline.locations import S3_SCHEME
from pipeline.storage import absolute
from pipeline.storage.finding import Found

# Folders of a lake that hold Parquet files.
_OF_A_LAKE = ("runs", "models", "clusters", "footers", "tuning", "delta", "iceberg")


def overlap(output: str, location: str, found: Found) -> Literal["inside", "above"] | None:
    """Whether an output lies inside an input, or above it; it need not exist yet.

    ``found`` is what was found at the input's ``location``. An output is inside where a later
    search of the location would find its files.
    """
    output, location = absolute(output), absolute(location)
    remote = output.startswith(S3_SCHEME)
    if remote != location.startswith(S3_SCHEME):
        return None
    if remote:
        place = output.rstrip("/").split("/")
        if _meets(location.rstrip("/").split("/"), place):
            return "inside"
        below = any(file.url.startswith(f"{output.rstrip('/')}/") for file in found.files)
        return "above" if below else None
    return _local_overlap(os.path.realpath(output), found)


def _local_overlap(output: str, found: Found) -> Literal["inside", "above"] | None:
    parts = output.strip("/").split("/")
    for depth in range(len(parts) + 1):
        with contextlib.suppress(OSError):  # it will be made, or that it cannot be is said later
            status = os.stat("/" + "/".join(parts[:depth]))
            patterns = found.searched.get((status.st_dev, status.st_ino), ())
            if any(_meets(pattern, parts[depth:]) for pattern in patterns):
                return "inside"
    starts = {os.path.realpath(start) for start in found.starts}
    above = any(f"{start}/".startswith(f"{output.rstrip('/')}/") for start in starts)
    return "above" if above else None


def _meets(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether a pattern matches a path, a folder above it, or anything below it."""
    if not pattern:
        return True
    if not path:
        return glob.has_magic(pattern[0]) or pattern[0] in _OF_A_LAKE
    if pattern[0] == "**":
        return _meets(pattern[1:], path) or _meets(pattern, path[1:])
    hidden = path[0].startswith(".") and not pattern[0].startswith(".")
    matches = path[0] == pattern[0] or (fnmatch.fnmatchcase(path[0], pattern[0]) and not hidden)
    return matches and _meets(pattern[1:], path[1:])
