"""report: one HTML page about the run."""

from __future__ import annotations

from pipeline.artifacts.explanations import Description, Explanation, Report
from pipeline.artifacts.summaries import Summary
from pipeline.bill.costs import TABLE_GETS, CostInputs
from pipeline.bill.records import StageCosts
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.insight.maps import PARTS, ROWS
from pipeline.report.page import make

# t-SNE of 1,797 digits took 4 s of one core.
_MAP_ROW_S = 2.2e-3
# Number of files that the page is made of, and its size.
_PAGE_GETS, _PAGE_BYTES = 60, 2_000_000


def _cost(run: CostInputs) -> StageCosts:
    """The map of some rows of the sample, and the page."""
    rows = min(run.sample_rows, ROWS)
    return StageCosts(
        rows=rows,
        written_bytes=_PAGE_BYTES,
        gets=_PAGE_GETS + TABLE_GETS * min(run.sample_parts, PARTS),
        puts=2,
        fixed_seconds=0.5,
        work_seconds=rows * _MAP_ROW_S + run.encode_s(rows),
    )


@stage("report", version=1, distributed=False, cost=_cost)
def report(
    config: Config,
    context: Context,
    summary: Summary,
    explanation: Explanation | None,
    description: Description | None,
) -> Report:
    """Compute the map, and write ``report/index.html``; ``dec report`` does the same later.

    The page is made from the run's folder alone. One that was made without an explanation is made
    again once there is one.
    """
    return make(context.lake, context.run_id)
