"""Quarantine: stages go on without bad shards, each of which is wholly in the output or not at all.

``runs/<run_id>/quarantine.json`` lists what stages after pin found; it is written before the stage
starts again, and from then on no stage of the run reads a row of those shards. Stages that were
complete by then stay so: what a model has learnt from a shard is not output of it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from pipeline.artifacts.inputs import Manifest, QuarantinedShard
from pipeline.artifacts.records import Record
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import BadShard, InputError, TransientError
from pipeline.input.bad_shards import CHANGED, VANISHED, check_bound
from pipeline.input.pinning import check_enough_rows, list_shards

log = logging.getLogger(__name__)

P = ParamSpec("P")
A = TypeVar("A")


class Quarantine(Record):
    """Content of ``quarantine.json``."""

    shards: tuple[QuarantinedShard, ...]


def without_bad_shards(
    run: Callable[Concatenate[Config, Context, Manifest, P], A],
) -> Callable[Concatenate[Config, Context, Manifest, P], A]:
    """Let a stage that reads shards start again, without them, when it meets bad ones.

    The stage is given a manifest whose ``quarantined`` holds all bad shards that are known by now.
    """
    stage = run.__name__

    @functools.wraps(run)
    def reading_stage(
        config: Config, context: Context, pinned: Manifest, /, *inputs: P.args, **named: P.kwargs
    ) -> A:
        while True:
            manifest = with_quarantine(config, context, pinned)
            try:
                return run(config, context, manifest, *inputs, **named)
            except BadShard as bad:
                known = {shard.url for shard in manifest.quarantined}
                if config.source.on_bad_shard == "error" or bad.url in known:
                    raise
                _set_aside(config, context, manifest, bad, stage)

    return reading_stage


def with_quarantine(config: Config, context: Context, pinned: Manifest) -> Manifest:
    """The manifest with the shards that stages of this run have set aside."""
    found = _read(context)
    if found:
        shards = context.lake.read_table(pinned.shards.path, ["url", "version"])
        versions = set(zip(*shards.to_pydict().values(), strict=True))
        # An entry of another pinning, which another setting led to, says nothing of this one.
        found = tuple(shard for shard in found if (shard.url, shard.version) in versions)
    quarantined = pinned.quarantined + found
    if quarantined and config.source.on_bad_shard == "error":
        raise InputError(
            f"run {context.run_id} left out {len(quarantined)} bad shards while "
            "source.on_bad_shard was quarantine; set it again, or start a new run id to read all"
        )
    if not found:
        return pinned
    manifest = pinned.model_copy(update={"quarantined": quarantined})
    check_bound(config, quarantined, pinned.shard_count + len(pinned.quarantined))
    check_enough_rows(config, pinned.rows - sum(shard.rows or 0 for shard in found))
    context.lake.write_json(f"{context.run_path}/manifest.json", manifest.model_dump(mode="json"))
    return manifest


def _set_aside(
    config: Config, context: Context, manifest: Manifest, bad: BadShard, stage: str
) -> None:
    """Add a bad shard to the run's list, and with it all that are gone or changed by now."""
    # Whatever rewrote or removed one shard rarely stops at one, and one listing finds them all.
    # It is also the last word on a storage that lost more than a shard: then it raises, and no
    # shard is blamed.
    present = {file.url: file.version for file in list_shards(config)}
    columns = ["url", "name", "version", "bytes", "rows"]
    shards = context.lake.read_table(manifest.shards.path, columns).to_pylist()
    known = {shard.url for shard in manifest.quarantined}
    found = []
    for row in shards:
        as_pinned = present.get(row["url"]) == row["version"]
        if row["url"] == bad.url:
            reason = bad.reason
            if as_pinned and reason in (VANISHED, CHANGED):
                raise TransientError(
                    f"shard {row['name']} was missing or another one, and is back as it was "
                    "pinned; the same run id continues"
                )
        elif as_pinned or row["url"] in known:
            continue
        else:
            reason = CHANGED if row["url"] in present else VANISHED
        found.append(QuarantinedShard(**row, stage=stage, reason=reason))
        log.warning(
            "run %s stage %s: bad shard %s is left out: %s",
            *(context.run_id, stage, row["name"], reason),
        )
    at_pin = sum(shard.stage == "pin" for shard in manifest.quarantined)
    check_bound(config, (*manifest.quarantined, *found), len(shards) + at_pin)
    content = Quarantine(shards=(*_read(context), *found))
    context.lake.write_json(_path(context), content.model_dump(mode="json"))


def _read(context: Context) -> tuple[QuarantinedShard, ...]:
    try:
        return Quarantine.model_validate(context.lake.read_json(_path(context))).shards
    except FileNotFoundError:
        return ()
    except (ValueError, ValidationError):
        raise InputError(
            f"{context.lake.locate(_path(context))} is not a list of bad shards that this version "
            "reads; start a new run id"
        ) from None


def _path(context: Context) -> str:
    return f"{context.run_path}/quarantine.json"
