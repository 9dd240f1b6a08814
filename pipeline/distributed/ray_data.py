"""Settings of Ray Data for all its uses here."""

from __future__ import annotations

import ray


def quiet_ray_data() -> ray.data.DataContext:
    """Turn off Ray Data's progress bars in this process, and let our errors through unchanged."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise it wraps errors in an exception whose cause is lost on the way to the driver.
    context.raise_original_map_exception = True
    return context
