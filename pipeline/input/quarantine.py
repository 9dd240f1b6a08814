"""Quarantine: stages leave out bad shards, so that all rows of a shard are in the output, or none.

``runs/<run_id>/quarantine.json`` lists the bad shards that stages after pin found. It is written
before the stage starts again, and from then on no stage of the run reads those shards. Stages that
are complete stay so: a model may have learnt from a shard that is left out of the output.
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
    """Restart a stage that reads shards without those that turn out to be bad.

    The stage gets a manifest whose ``quarantined`` holds all bad shards known so far.
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
    """The manifest with the bad shards that stages of this run have found."""
    found = _read(context)
    if found:
        shards = context.lake.read_table(pinned.shards.path, ["url", "version"])
        versions = set(zip(*shards.to_pydict().values(), strict=True))
        # Entries of an earlier pinning with other settings do not count.
        found = tuple(shard for shard in found if (shard.url, shard.version) in versions)
    quarantined = pinned.quarantined + found
    if quarantined and config.source.on_bad_shard == "error":
        raise InputError(
            f"run {context.run_id} left out {len(quarantined)} bad shards with "
            "source.on_bad_shard: quarantine; set it again, or start a new run id to read all"
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
    """Add a bad shard to the run's list, and with it all that are gone or have changed."""
    # A job that rewrites or removes one shard rarely stops at one, and one listing finds them all.
    # Where all of the storage is gone the listing raises, and no shard is blamed.
    columns = ["url", "name", "version", "bytes", "rows"]
    shards = context.lake.read_table(manifest.shards.path, columns).to_pylist()
    if manifest.table:  # its newest version may have other files, and is not what is read
        present = {row["url"]: row["version"] for row in shards if row["url"] != bad.url}
    else:
        present = {file.url: file.version for file in list_shards(config)}
    known = {shard.url for shard in manifest.quarantined}
    found = []
    for row in shards:
        as_pinned = present.get(row["url"]) == row["version"]
        if row["url"] == bad.url:
            reason = bad.reason
            if as_pinned and reason in (VANISHED, CHANGED):
                raise TransientError(
                    f"shard {row['name']} had vanished or changed; it matches its pinned version "
                    "again. The same run id continues"
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
