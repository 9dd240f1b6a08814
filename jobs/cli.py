"""The ``dec`` command. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

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
    typer.Option(
        "--ds", metavar="DATE", help="Logical date of the run, YYYY-MM-DD; never 'today'."
    ),
]
RunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="ID",
        help="Names the run; the same id again resumes it. Default: from settings and input.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=VALUE", help="Override a setting; the value is YAML. Repeat."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def run(
    config: ConfigPath,
    ds: Ds = None,
    run_id: RunId = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Do everything: fit DEC on the table, assign every row, publish the assignments.

    Works on the Ray cluster that RAY_ADDRESS names, or starts one on this machine. An interrupted
    run continues where it stopped; a complete one is shown again at once.

    Exit codes: 0 done · 1 unexpected · 2 config · 3 input · 4 numerical · 6 try again ·
    7 and 8 publish · 9 another start works on this ds · 10 storage refuses · 130 interrupted.
    """
    from jobs.night import run_night

    raise typer.Exit(
        run_night(config, ds=ds, run_id=run_id, overrides=overrides or [], as_json=as_json)
    )


@app.command()
def nightly(
    config: ConfigPath,
    ds: Annotated[
        str,
        typer.Option("--ds", metavar="DATE", help="Logical date of the night, YYYY-MM-DD."),
    ],
    run_id: RunId = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """One night of many: label what is new, now and then fit a challenger; ids last.

    By `schedule` the night refits, refreshes the champion, or labels with it as it is. A challenger
    that the gate refuses is kept for inspection, and the champion labels the rows.

    Exit codes: those of `dec run`, and 5: published, but the gate refused the challenger.
    """
    from jobs.night import run_night

    raise typer.Exit(
        run_night(
            config,
            ds=ds,
            run_id=run_id,
            overrides=overrides or [],
            by_schedule=True,
            as_json=as_json,
        )
    )


@app.command()
def backfill(
    config: ConfigPath,
    first: Annotated[str, typer.Option("--from", metavar="DATE", help="The first night.")],
    last: Annotated[str, typer.Option("--to", metavar="DATE", help="The last night.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Do the nights of a range of dates, one by one, as `dec nightly` does each.

    The champion labels nights before its own; `{ds}` in source.path stands for the date. Ends at
    the first night that fails, with its exit code; run again, it goes on from there.
    """
    from jobs.night import run_backfill

    raise typer.Exit(run_backfill(config, first, last, overrides or [], as_json=as_json))


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="pin, sample, pretrain, …")],
    config: ConfigPath,
    ds: Ds = None,
    run_id: RunId = None,
    nightly: Annotated[
        bool, typer.Option("--nightly", help="Of a night, as dec nightly does it; with --ds.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run one stage of a run; those before it must be complete.

    In order: pin, decide, sample, pretrain, init_centroids, refine, evaluate, select, identify,
    gate, promote, assign, publish, explain, describe, summary, report. With --nightly, decide says
    which of them the night has: a refresh has warm_start in place of pretrain and init_centroids,
    and a night that fits no model goes from decide to assign.
    """
    from jobs.night import guarded, run_night
    from jobs.session import keep_to_this_machine

    keep_to_this_machine()  # before anything imports Ray
    from pipeline.errors import ConfigError
    from pipeline.run import STAGES

    names = [known.name for known in STAGES]

    def check() -> None:
        if name not in names:
            raise ConfigError(f"stage {name!r} is not one of {', '.join(names)}")
        if nightly and ds is None:
            raise ConfigError("--nightly needs --ds, the date of the night")

    if code := guarded(check, as_json):
        raise typer.Exit(code)
    raise typer.Exit(
        run_night(
            config,
            ds=ds,
            run_id=run_id,
            overrides=overrides or [],
            only=name,
            by_schedule=nightly,
            as_json=as_json,
        )
    )


@app.command()
def tune(
    config: ConfigPath,
    clusters: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:MAX", help="Number of clusters. Default: 5:50, or as rows allow."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Total number, earlier trials included.")
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

    Trials run in parallel, and each is kept when it ends: the same command resumes an interrupted
    tuning. Writes all trials and a recommended config to tuning/ID/ of the output.

    Exit codes: 0 done · 1 unexpected · 2 config · 3 input · 4 no trial may be recommended ·
    6 try again · 130 interrupted.
    """
    from jobs.night import guarded

    def act() -> None:
        from jobs.commands.tune import TuneRequest, tune_config

        request = TuneRequest(clusters, trials, rows, run_id, ds)
        tune_config(config, overrides or [], request, as_json=as_json)

    raise typer.Exit(guarded(act, as_json))


@app.command()
def submit(
    config: ConfigPath,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The cluster's dashboard: http://HEAD:8265.",
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"],
        ),
    ] = None,
    ds: Ds = None,
    run_id: RunId = None,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the pipeline. Default: the config file's name."),
    ] = None,
    environment: Annotated[
        Literal["cluster", "lock"],
        typer.Option(help="The package and what it needs: as the nodes have it, or as here."),
    ] = "cluster",
    working_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Your own code, for augment.function; it is sent along."),
    ] = None,
    nightly: Annotated[
        bool, typer.Option("--nightly", help="As dec nightly, by schedule; else as dec run.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until the job ends; exit with its exit code.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="--wait, and show the log.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a run to a Ray cluster elsewhere, as a job of its own.

    The same config and date is refused while it runs there; when it has ended, submitting it again
    continues it. Ctrl-C leaves the job alone.

    Exit codes: 0 submitted; with --wait the job's own, 128 + n where signal n ended it, 130 where
    somebody stopped it · 2 config, address or token · 6 unreachable or lost · 9 at work already.
    """
    from jobs.night import guarded

    code = 0

    def act() -> None:
        nonlocal code
        from jobs.commands.submit import Submission, submit_night

        submission = Submission(
            config, ds, run_id, overrides or [], name, environment, working_dir, nightly
        )
        code = submit_night(submission, address=address, wait=wait, follow=follow, as_json=as_json)

    raise typer.Exit(guarded(act, as_json) or code)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of nodes of the cluster. Default: what the settings ask for, or this "
            "machine.",
        ),
    ] = None,
    cpus_per_node: Annotated[
        float | None,
        typer.Option(min=1, metavar="C", help="CPUs of each node. Default: this machine's."),
    ] = None,
    gpus_per_node: Annotated[
        float | None,
        typer.Option(min=0, metavar="G", help="GPUs of each node; all of them are paid for."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure this machine's rates on a sample: half a minute."),
    ] = False,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="RUN_ID", help="Show a run's estimate beside its measured times."
        ),
    ] = None,
    ds: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD", help="Date of the night. Default: the day after the last."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do, and its estimated cost, without starting Ray.

    Prints the settings, the shards and slices; rows, bytes, requests, passes, memory, core-hours
    and time of each stage; the price, where the config has prices. The measured times of the last
    run calibrate the estimate. Where the output has nights, or the config a schedule, it shows what
    the next night would do.
    """
    from jobs.commands.inspection import show_comparison, show_plan
    from jobs.night import guarded

    def show() -> None:
        if run_id is not None:
            show_comparison(config, overrides or [], run_id, as_json)
            return
        cluster = {"nodes": nodes, "cpus_per_node": cpus_per_node, "gpus_per_node": gpus_per_node}
        show_plan(config, overrides or [], as_json, cluster, measure=measure, ds=ds)

    raise typer.Exit(guarded(show, as_json))


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    footers_only: Annotated[
        bool, typer.Option("--footers-only", help="Check schemas, not every value.")
    ] = False,
    ds: Annotated[
        str | None,
        typer.Option(metavar="YYYY-MM-DD", help="Date in place of {ds} in source.path."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Validate config and input: schemas, widths, and every value of the features."""
    from jobs.commands.inspection import check_input
    from jobs.night import guarded

    raise typer.Exit(
        guarded(lambda: check_input(config, overrides or [], footers_only, as_json, ds), as_json)
    )


@app.command()
def gc(
    config: ConfigPath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and its size.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(metavar="N", help="Newest snapshots to keep. Default: retention.snapshots."),
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option(metavar="DAYS", help="Age of snapshots to keep. Default: retention.days."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, abandoned runs and tunings, and the files that only they use.

    Keeps what a kept snapshot names, everything younger than a day, and every run at work. Try it
    with --dry-run first.
    """
    from jobs.commands.cleanup import collect_garbage
    from jobs.night import guarded

    given = {"snapshots": keep, "days": keep_days}
    settings = [f"retention.{name}={n}" for name, n in given.items() if n is not None]
    raise typer.Exit(
        guarded(
            lambda: collect_garbage(
                config, [*(overrides or []), *settings], dry_run=dry_run, as_json=as_json
            ),
            as_json,
        )
    )


RunOf = Annotated[str, typer.Argument(metavar="RUN", help="A run id; see runs/ of the output.")]


@app.command()
def gate(
    config: ConfigPath, run: RunOf, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show the gate's verdict on a new model: each rule, its value and its limit."""
    from jobs.commands.gate import explain
    from jobs.night import guarded

    raise typer.Exit(
        guarded(lambda: explain(config, overrides or [], run, as_json=as_json), as_json)
    )


@app.command("explain")
def explain_run(
    config: ConfigPath,
    run: RunOf,
    cluster: Annotated[
        int | None, typer.Option(metavar="ID", help="One cluster: profile, rules, exemplars.")
    ] = None,
    versus: Annotated[
        int | None, typer.Option(metavar="ID", help="What tells --cluster from this one.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Explain a run's clusters: names, strongest features, rules and how true they are, exemplars.

    Rules come from a small decision tree that imitates the model; how often it agrees with the
    model, on rows that it was not fitted on, is shown beside them.
    """
    from jobs.commands.explain import show_explanation
    from jobs.night import guarded

    raise typer.Exit(
        guarded(
            lambda: show_explanation(
                config, overrides or [], run, cluster=cluster, versus=versus, as_json=as_json
            ),
            as_json,
        )
    )


@app.command()
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

    The evidence compares the row's values with the means of both clusters. For that the row is
    read from the input, if it has not changed since the run.
    """
    from jobs.commands.locate import locate as locate_row
    from jobs.night import guarded

    raise typer.Exit(
        guarded(lambda: locate_row(config, overrides or [], run, keys, as_json=as_json), as_json)
    )


@app.command()
def report(
    config: ConfigPath,
    run: RunOf,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a run's report again: one HTML file, of what the run has left; no Ray, no network.

    Exit codes: 0 it is there · 3 no such run, or it is not complete.
    """
    from jobs.commands.report import make_report
    from jobs.night import guarded

    raise typer.Exit(
        guarded(
            lambda: make_report(config, overrides or [], run, open_it=open_it, as_json=as_json),
            as_json,
        )
    )


@app.command()
def promote(
    config: ConfigPath,
    run: RunOf,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Reason, for the log.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a run's new model the champion, even if the gate refused it, from the next night on.

    If the champion has changed since that run, the clusters are matched again, on Ray.

    Exit codes: 0 promoted · 3 no such model, or files missing · 6 try again · 7, 8 commit failed.
    """
    from jobs.commands.gate import promote as promote_run
    from jobs.night import guarded

    raise typer.Exit(
        guarded(lambda: promote_run(config, overrides or [], run, why, as_json=as_json), as_json)
    )


@app.command()
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
    from jobs.night import guarded

    raise typer.Exit(
        guarded(
            lambda: roll_back(config, overrides or [], why, again=again, as_json=as_json), as_json
        )
    )


@app.command()
def diff(
    config: ConfigPath,
    before: Annotated[str, typer.Argument(metavar="DS1", help="Date of the first night.")],
    after: Annotated[str, typer.Argument(metavar="DS2", help="Date of the second night.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare two published nights: churn, transitions, and the clusters that changed most."""
    from jobs.commands.difference import show_difference
    from jobs.night import guarded

    raise typer.Exit(
        guarded(lambda: show_difference(config, overrides or [], before, after, as_json), as_json)
    )


@app.command()
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

    Rewrites only the files that hold them, publishes one snapshot, and leaves a receipt with counts
    and salted hashes, never the keys. Lists the old snapshots that hold them until dec gc.
    Remove the rows from the source too, or the next night labels them again.
    """
    from jobs.commands.forgetting import forget_rows
    from jobs.night import guarded

    raise typer.Exit(
        guarded(
            lambda: forget_rows(config, overrides or [], keys, dry_run=dry_run, as_json=as_json),
            as_json,
        )
    )


@app.command()
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
    from jobs.night import guarded

    raise typer.Exit(
        guarded(
            lambda: show_clusters(config, overrides or [], everything=everything, as_json=as_json),
            as_json,
        )
    )


@app.command()
def rename(
    config: ConfigPath,
    cluster_id: Annotated[int, typer.Argument(metavar="ID", help="Id of a living cluster.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="New name.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Name a cluster. The name stays with its id through refits, until the cluster ends."""
    from jobs.commands.registry import rename_cluster
    from jobs.night import guarded

    raise typer.Exit(
        guarded(
            lambda: rename_cluster(config, overrides or [], cluster_id, name, as_json=as_json),
            as_json,
        )
    )


@example_app.command()
def digits(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the shards go.")],
) -> None:
    """Write scikit-learn's 1,797 handwritten digits as Parquet shards."""
    from jobs.night import guarded
    from pipeline.input.example import write_digits

    def write() -> None:
        typer.echo(f"wrote {write_digits(folder):,} digits to {folder}")

    raise typer.Exit(guarded(write))


if __name__ == "__main__":
    app()
