"""Format of log lines, plain or one JSON object each, and the run, stage and slice in them.

``DEC_LOG_FORMAT`` sets the driver's format, which workers follow. It is a variable and not a
setting because lines are logged before a config is read, and when it cannot be.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import IO, Any

VARIABLE = "DEC_LOG_FORMAT"
FORMATS = ("plain", "json")


@dataclasses.dataclass(frozen=True)
class Place:
    """The run and stage that a process works for; sent to workers with their work.

    ``driver`` is the host and process id of the driver.
    """

    run_id: str = ""
    pipeline: str = ""
    stage: str = ""
    log_format: str = "plain"
    driver: str = ""


# Global, for threads that Arrow or Ray start: a process works for one run at a time.
_place = Place()
_slice: contextvars.ContextVar[int | None] = contextvars.ContextVar("slice", default=None)


def log_format() -> str:
    """Format that the environment sets.

    Raises:
        ValueError: There is no such format.
    """
    found = os.environ.get(VARIABLE, "") or FORMATS[0]
    if found not in FORMATS:
        raise ValueError(f"{VARIABLE}={found!r} must be one of {', '.join(FORMATS)}")
    return found


def here() -> Place:
    """Place of this process."""
    return _place


def begin(run_id: str, pipeline: str) -> None:
    """Make this process the driver of a run."""
    enter(Place(run_id, pipeline, "", log_format(), _this_process()))


def enter_stage(stage: str) -> None:
    """Set the current stage."""
    enter(dataclasses.replace(_place, stage=stage))


def enter(place: Place) -> None:
    """Set the place of this process; a worker gets the driver's log format."""
    global _place
    _place = place
    logger = logging.getLogger(__package__)
    if place.driver not in ("", _this_process()) and logger.propagate:
        # Ray forwards stderr; its own handlers, where it has any, know no format.
        logger.addHandler(handler(sys.stderr, place.log_format))
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def current_slice() -> int | None:
    """Number of this thread's slice."""
    return _slice.get()


@contextlib.contextmanager
def in_slice(number: int | None) -> Iterator[None]:
    """Name a slice in this thread's log lines while the block runs."""
    token = _slice.set(number)
    try:
        yield
    finally:
        _slice.reset(token)


# ---------------------------------------------------------------------------------------- lines


def handler(stream: IO[str], line_format: str) -> logging.Handler:
    """A handler for lines of this format with run, stage and slice."""
    found = logging.StreamHandler(stream)
    found.addFilter(_say_where)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s%(where)s %(message)s")
    found.setFormatter(_JsonLine() if line_format == "json" else plain)
    return found


def _say_where(record: logging.LogRecord) -> bool:
    """Filter that adds run, stage and slice to a record."""
    number = _slice.get()
    part = "" if number is None else f"slice {number}"
    words = " ".join(word for word in (_place.run_id, _place.stage, part) if word)
    vars(record).update(
        run_id=_place.run_id,
        stage=_place.stage,
        slice=number,
        where=f" [{words}]" if words else "",
    )
    return True


class _JsonLine(logging.Formatter):
    """Format a record as a JSON object in one line, with ``figures`` of the record as members."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run_id": getattr(record, "run_id", ""),
            "stage": getattr(record, "stage", ""),
            "pid": record.process,
            "node": socket.gethostname(),
        }
        if (number := getattr(record, "slice", None)) is not None:
            line["slice"] = number
        line |= getattr(record, "figures", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def json_line(message: str, level: str = "INFO") -> str:
    """A message as a JSON log line."""
    record = logging.LogRecord("dec", getattr(logging, level), "", 0, message, None, None)
    _say_where(record)
    return _JsonLine().format(record)


# The prefix of lines that Ray forwards: "(MapWorker(MapBatches(Assigner)) pid=42, ip=10.0.0.7) ".
_FORWARDED = re.compile(
    r"(?:\x1b\[\d+m)?\((?P<who>.*?) pid=(?P<pid>\d+)(?:, ip=(?P<ip>[^)]+))?\)(?:\x1b\[0m)? ?"
)


def as_json_lines(content: bytes) -> bytes:
    """Turn every line of a log into a JSON object.

    Our own lines stay; forwarded ones lose Ray's prefix. Other output becomes lines of the logger
    "output", with the stage of the line before, and its time where they have none.
    """
    lines = []
    before = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
    text_lines = content.decode(errors="replace").split("\n")  # splitlines splits at more
    for text in filter(str.strip, text_lines):
        forwarded = _FORWARDED.match(text)
        text = text[forwarded.end() :] if forwarded else text
        found = _own(text)
        if found is None:
            level, time = _stamp(text, before["time"])
            found = {"time": time, "level": level, "logger": "output", "message": text}
            found |= {"run_id": _place.run_id, "stage": before.get("stage", "")}
            found |= {"pid": os.getpid(), "node": socket.gethostname()}
            if forwarded:
                found["pid"] = int(forwarded["pid"])
                found["node"] = forwarded["ip"] or found["node"]
        if forwarded:
            found["worker"] = forwarded["who"]
        before = found
        lines.append(json.dumps(found, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


# The beginning of lines of Ray's own loggers, in Python and in C++.
_STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\s+(I|W|E|INFO|WARNING|ERROR)\b")


def _stamp(text: str, time: str) -> tuple[str, str]:
    """Level and time of a line; the given time where it has none."""
    if not (found := _STAMP.match(text)):
        return "INFO", time
    level = next(name for name in ("INFO", "WARNING", "ERROR") if name.startswith(found[2]))
    local = datetime.datetime.fromisoformat(found[1].replace(",", "."))
    return level, local.astimezone(datetime.UTC).isoformat(timespec="milliseconds")


def _own(text: str) -> dict[str, Any] | None:
    """A JSON line of ours, also where Ray appended how often it was repeated; else None."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    ours = {"time", "level", "logger", "message", "run_id"}
    return found if isinstance(found, dict) and ours <= set(found) else None
