"""The end of a process: libraries have bounded time to clean up, and never change the exit code."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

# Ray takes up to two seconds for each of its processes, and several times that on a busy machine.
CLEANUP_SECONDS = 30.0


def end_process(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main``, and end this process with its exit code.

    When ``main`` has returned, its result is printed and its lease released. The interpreter's own
    end would then wait without limit for threads of executors, for handlers of ``atexit`` and for
    native libraries. Here the handlers have ``CLEANUP_SECONDS``, and the rest is left out.
    """
    print_any_character()
    try:
        code: int | str | None = main()
    except SystemExit as end:
        code = end.code
    # Ctrl-C skips the wait; the exit code stays.
    with contextlib.suppress(KeyboardInterrupt):
        if not ends_within(CLEANUP_SECONDS, atexit._run_exitfuncs):
            note = f"note: libraries did not end within {CLEANUP_SECONDS:g} s; left as they are"
            print(note, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def print_any_character() -> None:
    """Print a replacement for a character that the terminal's encoding lacks, and never fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def ends_within(seconds: float, action: Callable[[], object]) -> bool:
    """Run ``action`` in a thread, and wait for it at most so long; returns whether it ended."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
