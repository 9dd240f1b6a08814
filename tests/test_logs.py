"""Log lines: where they come from, and JSON of everything that others print between them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Dec

from pipeline import logs


@pytest.fixture(autouse=True)
def _nowhere() -> Iterator[None]:
    before = logs.here()
    logs.enter(logs.Place())
    yield
    logs.enter(before)


def logged(how: str, **more: Any) -> str:
    """What a logger writes of a warning."""
    stream = io.StringIO()
    logger = logging.Logger("pipeline.test")
    logger.addHandler(logs.handler(stream, how))
    logger.warning("two\nlines of %s", "Grüße", **more)
    return stream.getvalue()


def test_plain_lines_say_where() -> None:
    assert " WARNING pipeline.test two\n" in logged("plain")
    logs.begin("night-1", "nightly")
    logs.enter_stage("assign")
    assert " pipeline.test [night-1 assign] two\n" in logged("plain")
    with logs.in_slice(7):
        assert " pipeline.test [night-1 assign slice 7] two\n" in logged("plain")


def test_json_lines_say_where() -> None:
    logs.begin("night-1", "nightly")
    logs.enter_stage("assign")
    with logs.in_slice(0):
        line = logged("json", extra={"figures": {"done": 3}})
    assert line.count("\n") == 1
    found = json.loads(line)
    assert found["message"] == "two\nlines of Grüße"
    assert (found["run_id"], found["stage"], found["slice"]) == ("night-1", "assign", 0)
    assert (found["level"], found["logger"], found["done"]) == ("WARNING", "pipeline.test", 3)
    assert found["time"].endswith("+00:00")
    assert "slice" not in json.loads(logged("json"))
    try:
        raise ValueError("why")
    except ValueError:
        assert "ValueError: why" in json.loads(logged("json", exc_info=True))["exception"]


OWN = json.dumps(
    {
        "time": "2026-01-31T01:02:03.000+00:00",
        "level": "INFO",
        "logger": "pipeline.test",
        "message": "ours\u2028",
        "run_id": "night-1",
        "stage": "assign",
        "pid": 1,
        "node": "host",
    },
    ensure_ascii=False,
)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (OWN, {"message": "ours\u2028", "pid": 1}),
        (f"(MapWorker(MapBatches(Assigner)) pid=42) {OWN}", {"message": "ours\u2028", "pid": 1}),
        (
            f"\x1b[36m(read pid=42, ip=10.0.0.7)\x1b[0m {OWN} [repeated 2x]",
            {"node": "host", "worker": "read"},
        ),
        ("(read pid=42, ip=10.0.0.7) Why", {"message": "Why", "pid": 42, "node": "10.0.0.7"}),
        ("[2026-01-31 E 12 34] core_worker.cc:5: lost", {"logger": "output", "level": "INFO"}),
        ("[2026-01-31 09:09:09,123 E 1 2] worker.cc:5: lost", {"level": "ERROR"}),
        ("(read pid=42) 2026-01-31 09:09:09,123\tINFO worker.py:1 -- up", {"level": "INFO"}),
        ('{"other": "object"}', {"message": '{"other": "object"}'}),
        ("3", {"message": "3"}),
        ("(no prefix", {"message": "(no prefix"}),
    ],
)
def test_everything_printed_becomes_json(printed: str, expected: dict[str, Any]) -> None:
    before, found = map(
        json.loads, logs.as_json_lines(f"{OWN}\n\n{printed}\n".encode()).decode().split("\n")[:-1]
    )
    assert expected.items() <= found.items()
    assert set(before) <= set(found)
    assert found["stage"] == "assign"
    own_time = ":09:09.123+00:00" in found["time"]
    assert own_time if "09:09,123" in printed else found["time"] == before["time"]
    assert ("worker" in found) is ("pid=42" in printed)


def test_a_format_that_is_none(dec: Dec, settings: dict[str, Any]) -> None:
    result = dec("run", settings=settings, env={"DEC_LOG_FORMAT": "xml"})
    assert result.code == 2
    assert result.err == "error: DEC_LOG_FORMAT='xml' must be one of plain, json\n"
    result = dec("run", "--set", "clusters=0", settings=settings, env={"DEC_LOG_FORMAT": "json"})
    assert result.code == 2
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert lines[-1]["level"] == "ERROR"
    assert lines[-1]["message"].startswith("error: clusters=0 must be")
