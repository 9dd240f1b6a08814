"""Commands that prepare, run and submit runs. Each imports its heavy libraries itself."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.application import AsJson, ConfigPath, Ds, Overrides, RunId, command


@command
def run(
    config: ConfigPath,
    ds: Ds = None,
    run_id: RunId = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Fit DEC on the table, assign every row to a cluster, and publish the assignments.

    Uses the Ray cluster at RAY_ADDRESS, or starts one on this machine. An interrupted run resumes
    where it stopped; the result of a complete one is printed again.

    Exit codes: 0 done · 1 unexpected · 2 config · 3 input · 4 numerical · 6 try again ·
    7, 8 publish · 9 another process works on this date · 10 storage refuses · 130 interrupted.
    """
    from jobs.night import run_night

    return run_night(config, ds=ds, run_id=run_id, overrides=overrides or [], as_json=as_json)


@command
def nightly(
    config: ConfigPath,
    ds: Annotated[
        str, typer.Option("--ds", metavar="DATE", help="Logical date of the night, YYYY-MM-DD.")
    ],
    run_id: RunId = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Run one night: label new rows, and refit on schedule; cluster ids are permanent.

    `schedule` decides whether the night refits, refreshes the champion, or only labels with it. If
    the gate refuses the new model, the champion labels the rows; the new model is kept.

    Exit codes: those of `dec run`, and 5: published, but the gate refused the new model.
    """
    from jobs.night import run_night

    return run_night(
        config, ds=ds, run_id=run_id, overrides=overrides or [], by_schedule=True, as_json=as_json
    )


@command
def backfill(
    config: ConfigPath,
    first: Annotated[str, typer.Option("--from", metavar="DATE", help="First date, YYYY-MM-DD.")],
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="Last date, YYYY-MM-DD.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Run `dec nightly` for each date of a range, oldest first.

    The champion also labels dates before its own; `{ds}` in source.path stands for the date. Stops
    at the first night that fails, with its exit code; the same command resumes there.
    """
    from jobs.night import run_backfill

    return run_backfill(config, first, last, overrides or [], as_json=as_json)


@command
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="pin, sample, pretrain, …")],
    config: ConfigPath,
    ds: Ds = None,
    run_id: RunId = None,
    nightly: Annotated[
        bool, typer.Option("--nightly", help="Stage of a dec nightly run; needs --ds.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Run one stage of a run; the stages before it must be complete.

    In order: pin, decide, sample, pretrain, init_centroids, refine, evaluate, select, identify,
    gate, promote, assign, publish, explain, describe, summary, report. With --nightly, decide
    chooses among them: a refresh has warm_start instead of pretrain and init_centroids, and a night
    that fits no model continues with assign after decide.
    """
    from jobs.night import run_night
    from jobs.session import keep_to_this_machine

    keep_to_this_machine()  # before anything imports Ray
    from pipeline.errors import ConfigError
    from pipeline.run import STAGES

    names = [known.name for known in STAGES]
    if name not in names:
        raise ConfigError(f"stage {name!r} is not one of {', '.join(names)}")
    if nightly and ds is None:
        raise ConfigError("--nightly needs --ds, the date of the night")
    return run_night(
        config,
        ds=ds,
        run_id=run_id,
        overrides=overrides or [],
        only=name,
        by_schedule=nightly,
        as_json=as_json,
    )


@command
def tune(
    config: ConfigPath,
    clusters: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", help="Range of K. Default: 5:50, or what the rows allow."),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Total number of trials, earlier ones included.")
    ] = 24,
    rows: Annotated[
        int, typer.Option(min=40, metavar="ROWS", help="Maximum number of rows in the sample.")
    ] = 5_000,  # a trial fits either half of them: enough for the measures to peak
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id",
            metavar="ID",
            help="Id of the tuning; the same id resumes it. Default: from settings and input.",
        ),
    ] = None,
    ds: Ds = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Choose K, embedding, width, scaling, augmentation and refinement on a sample, without labels.

    Trials run in parallel, and finished ones are kept: the same command resumes an interrupted
    tuning. Writes all trials and a recommended config to tuning/ID/ of the output.

    Exit codes: 0 done · 1 unexpected · 2 config · 3 input · 4 no trial can be recommended ·
    6 try again · 130 interrupted.
    """
    from jobs.commands.tune import TuneRequest, tune_config

    request = TuneRequest(clusters, trials, rows, run_id, ds)
    tune_config(config, overrides or [], request, as_json=as_json)


@command
def submit(
    config: ConfigPath,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of the cluster's dashboard: http://HEAD:8265.",
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"],
        ),
    ] = None,
    ds: Ds = None,
    run_id: RunId = None,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the pipeline. Default: the config file's."),
    ] = None,
    environment: Annotated[
        Literal["cluster", "lock"],
        typer.Option(help="Use the nodes' installation, or this machine's versions (lock)."),
    ] = "cluster",
    working_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder of your own code, such as augment.function; it is uploaded."
        ),
    ] = None,
    nightly: Annotated[
        bool, typer.Option("--nightly", help="Run dec nightly instead of dec run; needs --ds.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the job, and exit with its exit code.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Like --wait, and print the job's log.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Submit a run to a remote Ray cluster, as a Ray job.

    The same pipeline and date is refused while its job runs; after that, submitting it again
    resumes the run. Ctrl-C does not stop the job.

    Exit codes: 0 submitted; with --wait the job's own, 128 + n if signal n ended it, 130 if it was
    stopped · 2 config, address or token · 6 unreachable or lost · 9 already running.
    """
    from jobs.commands.submit import Submission, submit_night

    submission = Submission(
        config, ds, run_id, overrides or [], name, environment, working_dir, nightly
    )
    return submit_night(submission, address=address, wait=wait, follow=follow, as_json=as_json)


@command
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of nodes. Default: as the settings require, or this machine.",
        ),
    ] = None,
    cpus_per_node: Annotated[
        float | None,
        typer.Option(min=1, metavar="C", help="CPUs of each node. Default: this machine's."),
    ] = None,
    gpus_per_node: Annotated[
        float | None, typer.Option(min=0, metavar="G", help="GPUs of each node; all are paid for.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure rates on this machine; takes half a minute.")
    ] = False,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="RUN_ID", help="Show a run's estimate beside its measured times."
        ),
    ] = None,
    ds: Ds = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, and its estimated cost, without starting Ray.

    Prints settings, shards and slices; rows, bytes, requests, passes, memory, core-hours and time
    of each stage; the price, if the config has prices. The last run's measured times calibrate the
    estimate. If the output has nights, or the config a schedule, it plans the night of --ds, by
    default the day after the last.
    """
    from jobs.commands.inspection import show_comparison, show_plan

    if run_id is not None:
        show_comparison(config, overrides or [], run_id, as_json)
        return
    cluster = {"nodes": nodes, "cpus_per_node": cpus_per_node, "gpus_per_node": gpus_per_node}
    show_plan(config, overrides or [], as_json, cluster, measure=measure, ds=ds)


@command
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    footers_only: Annotated[
        bool, typer.Option("--footers-only", help="Check schemas only, not values.")
    ] = False,
    ds: Ds = None,
    as_json: AsJson = False,
) -> None:
    """Validate config and input: schemas, widths, and every value of the features."""
    from jobs.commands.inspection import check_input

    check_input(config, overrides or [], footers_only, as_json, ds)
