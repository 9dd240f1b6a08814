"""report: a page for people, made of what the run has left."""

from __future__ import annotations

from pipeline.artifacts.explanations import Description, Explanation, Report
from pipeline.artifacts.summaries import NightSummary, Summary
from pipeline.config import Config
from pipeline.engine import Context, stage
from pipeline.report.making import make


@stage("report", version=1, distributed=False)
def report(
    config: Config,
    context: Context,
    summary: Summary | NightSummary,
    explanation: Explanation | None,
    description: Description | None,
) -> Report:
    """Lay out the map, and write ``report/index.html``; ``dec report`` does the same later.

    Everything on the page is read from the run's folder, so that a page can be made again from
    there alone; the summary says that it is complete. One that was made without an explanation is
    made again once there is one.
    """
    return make(context.lake, context.run_id)
