"""sample: draw the reference sample by seed, and compute the scaler's statistics."""

from __future__ import annotations

import pyarrow as pa

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.records import StoredFile
from pipeline.bill.costs import TABLE_GETS, CostInputs
from pipeline.bill.records import StageCosts
from pipeline.config import Config, content_of
from pipeline.distributed.resources import READER
from pipeline.distributed.retries import with_retries
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, map_slices
from pipeline.engine import Context, stage
from pipeline.errors import InputError
from pipeline.input.quarantine import without_bad_shards
from pipeline.input.reading import Reader, pieces_of
from pipeline.input.samples import MergedParts, SamplePart, part_name, write_sample_part
from pipeline.input.slices import by_slice, held_out_share, sample_share
from pipeline.input.statistics import fit_scaler
from pipeline.registry.models import scaler_bytes


def _cost(run: CostInputs) -> StageCosts:
    """Some row groups read whole, and some of their rows written."""
    manifest, groups, parts = run.manifest, run.sampled_groups, run.sample_parts
    share, readers = groups / max(1, manifest.row_groups), min(parts, run.cluster.cores)
    return StageCosts(
        rows=round(manifest.rows * share),
        passes=1,
        read_bytes=manifest.wanted_bytes * share,
        written_bytes=manifest.wanted_bytes * run.sample_rows / max(1, manifest.rows),
        input_gets=run.input_gets(groups, groups, manifest.wanted_bytes * share),
        gets=TABLE_GETS,
        puts=parts + 1,
        readers=readers,
        fixed_seconds=run.rates.start_s,
        work_seconds=manifest.rows * share * manifest.width * run.rates.value_ns * 1e-9 / readers,
        cores=readers,
        held_bytes=2 * run.group_bytes + 2 * run.sample_rows * run.row_bytes / parts,
    )


@stage(
    "sample",
    version=3,
    settings=content_of(
        "source.features", "source.scaling", "source.held_out", "centroids.sample_rows", "seed"
    ),
    distributed=True,
    cost=_cost,
)
@without_bad_shards
def sample(config: Config, context: Context, manifest: Manifest) -> Sample:
    """Read the chosen row groups on many workers, which write the parts of the sample."""
    pieces = pieces_of(manifest, context.lake)
    chosen = sample_share(pieces, config.centroids.sample_rows, config.seed)
    reader = Reader.of(config, manifest, carry=True)
    folder = context.lake.child(context.stage_path("sample", "reference"))
    rows = int(pieces["rows"].to_numpy().sum())
    seed, unseen = config.seed, held_out_share(config.source.held_out, rows)

    def read(pieces: pa.Table) -> pa.Table:
        return write_sample_part(reader, pieces, folder, seed, unseen)

    total = int(chosen["rows"].to_numpy().sum())

    def draw() -> MergedParts:
        slices = by_slice(chosen)
        drawn = MergedParts(part_name(pieces["slice"][0].as_py()) for pieces in slices)
        for result in map_slices(config.execution, slices, read, claim=READER):
            for row in result.to_pylist():
                drawn.add(SamplePart(**row))
            done = sum(part.scanned for part in drawn.parts)
            context.progress.stage_advanced(done, total, "rows")
        return drawn

    drawn = with_retries(config.execution, "sample", draw, memory=SAMPLE_IN_MEMORY)
    parts, statistics = sorted(drawn.parts, key=lambda part: part.name), drawn.merged()
    count_F = statistics.moments.count_F[: manifest.width]
    if not count_F.all():
        raise InputError(
            f"{int((count_F == 0).sum())} of {len(count_F)} features hold no finite value in the "
            "sample; take them out of source.features"
        )
    scaler = fit_scaler(config, manifest.features, statistics)
    missing_F = statistics.moments.missing_F[: manifest.width]
    return Sample(
        parts=tuple(
            StoredFile(
                path=context.stage_path("sample", f"reference/{part.name}"),
                sha256=part.sha256,
                bytes=part.bytes,
            )
            for part in parts
        ),
        rows=sum(part.rows for part in parts),
        scanned_rows=sum(part.scanned for part in parts),
        missing_values=int(missing_F.sum()),
        scaler=context.store(
            context.stage_path("sample", "scaler.parquet"), scaler_bytes(scaler, manifest.features)
        ),
        scaling=config.source.scaling,
    )
