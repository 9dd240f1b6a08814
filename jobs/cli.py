"""The ``dec`` command."""

from __future__ import annotations

from typing import NoReturn

from jobs import run_commands  # noqa: F401  registers its commands, which help lists first

# isort: split
from jobs import lake_commands  # noqa: F401
from jobs.application import app
from jobs.ending import end_process


def main() -> NoReturn:
    """Entry point of ``dec``: ends the process with the command's exit code, in bounded time."""
    end_process(app)


if __name__ == "__main__":
    main()
