"""The ``dec`` command. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

from typing import Annotated

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
    7 and 8 publish · 130 interrupted.
    """
    from jobs.night import run_night

    raise typer.Exit(
        run_night(config, ds=ds, run_id=run_id, overrides=overrides or [], as_json=as_json)
    )


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="pin, sample, pretrain, …")],
    config: ConfigPath,
    ds: Ds = None,
    run_id: RunId = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run one stage of a run; those before it must be complete.

    In order: pin, sample, pretrain, init_centroids, refine, evaluate, select, assign, publish,
    summary.
    """
    from jobs.night import guarded, run_night
    from pipeline.errors import ConfigError
    from pipeline.run import STAGES

    names = [known.name for known in STAGES]

    def check() -> None:
        if name not in names:
            raise ConfigError(f"stage {name!r} is not one of {', '.join(names)}")

    if code := guarded(check, as_json):
        raise typer.Exit(code)
    raise typer.Exit(
        run_night(
            config, ds=ds, run_id=run_id, overrides=overrides or [], only=name, as_json=as_json
        )
    )


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a run would do, without starting Ray: settings, shards, slices, memory."""
    from jobs.inspection import show_plan
    from jobs.night import guarded

    raise typer.Exit(guarded(lambda: show_plan(config, overrides or [], as_json), as_json))


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    footers_only: Annotated[
        bool, typer.Option("--footers-only", help="Check schemas, not every value.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Validate config and input: schemas, widths, and every value of the features."""
    from jobs.inspection import check_input
    from jobs.night import guarded

    raise typer.Exit(
        guarded(lambda: check_input(config, overrides or [], footers_only, as_json), as_json)
    )


@example_app.command()
def digits(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the shards go.")],
) -> None:
    """Write scikit-learn's 1,797 handwritten digits as Parquet shards."""
    from jobs.night import guarded
    from pipeline.lake.example import write_digits

    def write() -> None:
        typer.echo(f"wrote {write_digits(folder):,} digits to {folder}")

    raise typer.Exit(guarded(write))


if __name__ == "__main__":
    app()
