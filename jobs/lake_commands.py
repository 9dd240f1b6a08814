"""Commands about what runs left in the lake. Each imports its heavy libraries itself."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.application import AsJson, ConfigPath, Overrides, RunOf, command, example_app, guarded


@command
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


@command
def gate(
    config: ConfigPath, run: RunOf, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show the gate's verdict on a new model: each rule, its value and its limit."""
    from jobs.commands.gate import explain

    explain(config, overrides or [], run, as_json=as_json)


@command
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


@command
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


@command
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


@command
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


@command
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


@command
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


@command
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


@command
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


@command
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
