"""The pin stage on its own; it needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import blobs, config_of, write_shards

from pipeline.engine import Context
from pipeline.input import footers, pinning
from pipeline.stages.pin import pin


def test_the_next_night_reads_what_changed(
    settings: dict[str, Any], context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    footer = footers.read_footer

    def counted(file: Any) -> Any:
        read.append(file.name)
        return footer(file)

    for module in (pinning, footers):
        monkeypatch.setattr(module, "read_footer", counted)
    folder = write_shards(tmp_path / "table", blobs(600), shards=5)
    settings["source"] |= {"path": str(folder)}
    first = pin.run(config_of(settings), context)
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(set(read)) == names

    def next_night() -> set[str]:
        read.clear()
        night = Context("next", "2026-02-01", context.lake)
        again = pin.run(config_of(settings), night)
        assert again.model_copy(update={"shards": first.shards}) == first
        assert night.lake.read_bytes(again.shards.path) == night.lake.read_bytes(first.shards.path)
        return set(read)

    assert next_night() == {names[0]}
    # What is damaged is not believed.
    (kept,) = (tmp_path / "lake/footers").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert next_night() == set(names)


def test_nights_of_a_folder_each_leave_one_file_of_footers(
    settings: dict[str, Any], context: Context, tmp_path: Path
) -> None:
    for ds in ("2026-02-01", "2026-02-02"):
        folder = write_shards(tmp_path / "table" / ds, blobs(600), shards=2)
        settings["source"] |= {"path": str(folder)}
        pin.run(config_of(settings), Context(f"night-{ds}", ds, context.lake))
    assert len(list((tmp_path / "lake/footers").iterdir())) == 1
