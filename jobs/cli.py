"""The ``dec`` command. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Literal, NoReturn

import typer

from jobs.ending import end_process

app = typer.Typer(
    name="dec",
    help="Deep Embedded Clustering of very large Parquet tables, on Ray.",
    epilog="Start with: dec run configs/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
example_app = typer.Typer(help="Write an example dataset.", no_args_is_help=True)
app.add_typer(example_app, name="example")

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
Ds = Annotated[
    str | None,
    typer.Option("--ds", metavar="DATE", help="Logical date of the run, YYYY-MM-DD."),
]
RunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="ID",
        help="Id of the run; the same id resumes it. Default: from settings and input.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=VALUE", help="Override a setting; the value is YAML. Repeatable."
    ),
]
RunOf = Annotated[str, typer.Argument(metavar="RUN", help="A run id; see runs/ of the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def guarded(command: Callable[..., int | None]) -> Callable[..., NoReturn]:
    """Exit with the code that a command returns, or with that of its error and one message."""

    @functools.wraps(command)  # typer reads the signature and the docstring
    def run_command(**options: object) -> NoReturn:
        from jobs.night import exit_code_of

        as_json = bool(options.get("as_json"))
        raise typer.Exit(exit_code_of(lambda: command(**options), as_json))

    return run_command


@app.command()
@guarded
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


@app.command()
@guarded
def nightly(
    config: ConfigPath,
    ds: Annotated[
        str,
        typer.Option("--ds", metavar="DATE", help="Logical date of the night, YYYY-MM-DD."),
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
        config,
        ds=ds,
        run_id=run_id,
        overrides=overrides or [],
        by_schedule=True,
        as_json=as_json,
    )


@app.command()
@guarded
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


@app.command()
@guarded
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


@app.command()
@guarded
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


@app.command()
@guarded
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


@app.command()
@guarded
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
        float | None,
        typer.Option(min=0, metavar="G", help="GPUs of each node; all are paid for."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure rates on this machine; takes half a minute."),
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


@app.command()
@guarded
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


@app.command()
@guarded
def gc(
    config: ConfigPath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and its size.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of newest snapshots to keep. Default: retention.snapshots."
        ),
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option(metavar="DAYS", help="Keep younger snapshots. Default: retention.days."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, abandoned runs and tunings, and the files that only they use.

    Keeps what a kept snapshot refers to, everything younger than a day, and runs in progress. Try
    it with --dry-run first.
    """
    from jobs.commands.cleanup import collect_garbage

    given = {"snapshots": keep, "days": keep_days}
    settings = [f"retention.{name}={n}" for name, n in given.items() if n is not None]
    collect_garbage(config, [*(overrides or []), *settings], dry_run=dry_run, as_json=as_json)


@app.command()
@guarded
def gate(
    config: ConfigPath, run: RunOf, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show the gate's verdict on a new model: each rule, its value and its limit."""
    from jobs.commands.gate import explain

    explain(config, overrides or [], run, as_json=as_json)


@app.command()
@guarded
def explain(
    config: ConfigPath,
    run: RunOf,
    cluster: Annotated[
        int | None, typer.Option(metavar="ID", help="One cluster: profile, rules, exemplars.")
    ] = None,
    versus: Annotated[
        int | None, typer.Option(metavar="ID", help="Compare --cluster with this cluster.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Explain a run's clusters: names, top features, rules and their fidelity, exemplars.

    Rules come from a small decision tree that imitates the model. Their fidelity is how often the
    tree agrees with the model on held-out rows.
    """
    from jobs.commands.explain import show_explanation

    show_explanation(config, overrides or [], run, cluster=cluster, versus=versus, as_json=as_json)


@app.command()
@guarded
def locate(
    config: ConfigPath,
    run: RunOf,
    keys: Annotated[
        list[str],
        typer.Option(
            "--key", metavar="COLUMN=VALUE", help="Key column and value; repeat for each column."
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Find a row by its key: cluster, confidence, runner-up, evidence, similar exemplars.

    The evidence compares the row's values with the means of both clusters. It needs the row from
    the input, which must not have changed since the run.
    """
    from jobs.commands.locate import locate as locate_row

    locate_row(config, overrides or [], run, keys, as_json=as_json)


@app.command()
@guarded
def report(
    config: ConfigPath,
    run: RunOf,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Recreate a run's report, one HTML file, from the run's files; needs neither Ray nor network.

    Exit codes: 0 written · 3 no such run, or it is not complete.
    """
    from jobs.commands.report import make_report

    make_report(config, overrides or [], run, open_it=open_it, as_json=as_json)


@app.command()
@guarded
def promote(
    config: ConfigPath,
    run: RunOf,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Reason, for the log.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a run's new model the champion from the next night on, even if the gate refused it.

    If the champion has changed since that run, the clusters are matched again, on Ray.

    Exit codes: 0 promoted · 3 no such model, or files missing · 6 try again · 7, 8 commit failed.
    """
    from jobs.commands.gate import promote as promote_run

    promote_run(config, overrides or [], run, why, as_json=as_json)


@app.command()
@guarded
def rollback(
    config: ConfigPath,
    why: Annotated[
        str | None, typer.Option("--why", metavar="TEXT", help="Reason, for the log.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Roll back further if the last change was a rollback.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Restore the previous champion, from the next night on.

    Cluster ids born since then end; ids that ended since then are valid again.
    """
    from jobs.commands.gate import rollback as roll_back

    roll_back(config, overrides or [], why, again=again, as_json=as_json)


@app.command()
@guarded
def diff(
    config: ConfigPath,
    before: Annotated[str, typer.Argument(metavar="DS1", help="Date of the first night.")],
    after: Annotated[str, typer.Argument(metavar="DS2", help="Date of the second night.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare two published nights: churn, transitions, and the clusters that changed most."""
    from jobs.commands.difference import show_difference

    show_difference(config, overrides or [], before, after, as_json)


@app.command()
@guarded
def forget(
    config: ConfigPath,
    keys: Annotated[
        str,
        typer.Option(
            "--keys", metavar="FILE", help="Parquet or CSV with the columns of source.keys."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and from where.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove rows by key from published partitions, samples, exemplars and staged files.

    Rewrites only the files with these rows, publishes one snapshot, and writes a receipt with
    counts and salted hashes, without keys. Lists older snapshots with these rows; dec gc removes
    them. Remove the rows from the source too, or the next night labels them again.
    """
    from jobs.commands.forgetting import forget_rows

    forget_rows(config, overrides or [], keys, dry_run=dry_run, as_json=as_json)


@app.command()
@guarded
def clusters(
    config: ConfigPath,
    everything: Annotated[bool, typer.Option("--all", help="Include clusters that ended.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List the clusters by permanent id: name, birth, parents, size and exemplars.

    Sizes are rows of the sample that the champion was fitted on.
    """
    from jobs.commands.registry import show_clusters

    show_clusters(config, overrides or [], everything=everything, as_json=as_json)


@app.command()
@guarded
def rename(
    config: ConfigPath,
    cluster_id: Annotated[int, typer.Argument(metavar="ID", help="Id of a living cluster.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="New name.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Name a cluster. The name stays with its id through refits, until the cluster ends."""
    from jobs.commands.registry import rename_cluster

    rename_cluster(config, overrides or [], cluster_id, name, as_json=as_json)


@example_app.command()
@guarded
def digits(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder for the shards.")],
) -> None:
    """Write scikit-learn's 1,797 handwritten digits as Parquet shards."""
    from pipeline.input.example import write_digits

    typer.echo(f"wrote {write_digits(folder):,} digits to {folder}")


def main() -> NoReturn:
    """Entry point of ``dec``: ends the process with the command's exit code, in bounded time."""
    end_process(app)


if __name__ == "__main__":
    main()
