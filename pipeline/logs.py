"""Where in a run a log line comes from, and how lines look: plain, or one JSON object each.

``DEC_LOG_FORMAT`` decides, for the driver; workers are told. It is the environment's, not the
config's: lines are written before a config is read, and also when it cannot be.
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
    """Where a process is; sent to workers along with their work.

    Attributes:
        run_id: Of the run.
        pipeline: Its name.
        stage: That it works on.
        log_format: How its lines look.
        driver: Host and number of the process that decided all this.
    """

    run_id: str = ""
    pipeline: str = ""
    stage: str = ""
    log_format: str = "plain"
    driver: str = ""


# One run at a time in a process: threads that Arrow or Ray start know it too.
_place = Place()
_slice: contextvars.ContextVar[int | None] = contextvars.ContextVar("slice", default=None)


def log_format() -> str:
    """What the environment asks for.

    Raises:
        ValueError: It is no format.
    """
    found = os.environ.get(VARIABLE, "") or FORMATS[0]
    if found not in FORMATS:
        raise ValueError(f"{VARIABLE}={found!r} must be one of {', '.join(FORMATS)}")
    return found


def here() -> Place:
    """Where this process is."""
    return _place


def begin(run_id: str, pipeline: str) -> None:
    """This process is the driver of a run from now on."""
    enter(Place(run_id, pipeline, "", log_format(), _this_process()))


def enter_stage(stage: str) -> None:
    """The run has come to this stage."""
    enter(dataclasses.replace(_place, stage=stage))


def enter(place: Place) -> None:
    """This process is there from now on; a worker's lines look as the driver's do."""
    global _place
    _place = place
    logger = logging.getLogger(__package__)
    if place.driver not in ("", _this_process()) and logger.propagate:
        # Ray has handlers of its own, or none, and forwards what goes to stderr.
        logger.addHandler(handler(sys.stderr, place.log_format))
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def current_slice() -> int | None:
    """Number of the slice that this thread works on."""
    return _slice.get()


@contextlib.contextmanager
def in_slice(number: int | None) -> Iterator[None]:
    """This thread works on a slice while the block runs."""
    token = _slice.set(number)
    try:
        yield
    finally:
        _slice.reset(token)


# ---------------------------------------------------------------------------------------- lines


def handler(stream: IO[str], how: str) -> logging.Handler:
    """Writes lines of this format, which say where they come from."""
    found = logging.StreamHandler(stream)
    found.addFilter(_say_where)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s%(where)s %(message)s")
    found.setFormatter(_JsonLine() if how == "json" else plain)
    return found


def _say_where(record: logging.LogRecord) -> bool:
    """A filter: puts run, stage and slice on a record."""
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
    """A record as a JSON object in one line; ``figures`` on a record become members."""

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
    """A line for people, as a collector reads it."""
    record = logging.LogRecord("dec", getattr(logging, level), "", 0, message, None, None)
    _say_where(record)
    return _JsonLine().format(record)


# "(MapWorker(MapBatches(Assigner)) pid=42, ip=10.0.0.7) ", in colour: what Ray puts before lines.
_FORWARDED = re.compile(
    r"(?:\x1b\[\d+m)?\((?P<who>.*?) pid=(?P<pid>\d+)(?:, ip=(?P<ip>[^)]+))?\)(?:\x1b\[0m)? ?"
)


def as_json_lines(content: bytes) -> bytes:
    """A log in which every line is a JSON object, from one that other programs wrote into too.

    Lines of our own stay; those that Ray forwards lose its prefix. What else was printed becomes a
    line of the logger "output", at the stage of the line before and, if it states none, its time.
    """
    lines = []
    before = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
    for text in content.decode(errors="replace").split("\n"):  # nothing else ends a line
        if not text.strip():
            continue
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


# What Ray's own loggers, in Python and in C++, begin a line with.
_STAMP = re.compile(r"\[?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\s+(I|W|E|INFO|WARNING|ERROR)\b")


def _stamp(text: str, time: str) -> tuple[str, str]:
    """Level and time of a line; the given time where it says none."""
    if not (found := _STAMP.match(text)):
        return "INFO", time
    level = next(name for name in ("INFO", "WARNING", "ERROR") if name.startswith(found[2]))
    local = datetime.datetime.fromisoformat(found[1].replace(",", "."))
    return level, local.astimezone(datetime.UTC).isoformat(timespec="milliseconds")


def _own(text: str) -> dict[str, Any] | None:
    """A line that we wrote; Ray may have put behind it how often it was repeated."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    ours = {"time", "level", "logger", "message", "run_id"}
    return found if isinstance(found, dict) and ours <= set(found) else None
