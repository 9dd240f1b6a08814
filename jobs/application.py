"""What all commands of ``dec`` share: the application, common options, and exit codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, NoReturn

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


def command(function: Callable[..., int | None]) -> Callable[..., NoReturn]:
    """A guarded command of ``dec``."""
    return app.command()(guarded(function))
