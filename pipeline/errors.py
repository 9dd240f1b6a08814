"""Every way a run can end badly, one class for each thing the operator does about it.

A message says what, got, expected and the next step. The entry points print that one line and
exit with the class's own code, so a scheduler can tell a broken config from a night to retry.
"""

from __future__ import annotations


class PipelineError(Exception):
    """A failure that has a cause the operator can act on.

    Attributes:
        exit_code: Exit status of the process for this kind of failure.
        retryable: Whether running the same run id again, unchanged, may succeed.
    """

    exit_code = 1
    retryable = False


class ConfigError(PipelineError):
    """The settings are wrong or cannot be satisfied: fix the YAML or the ``--set``."""

    exit_code = 2


class InputError(PipelineError):
    """The data is wrong: a missing path, a schema that does not fit, NaN, a corrupt shard."""

    exit_code = 3


class NumericalError(PipelineError):
    """The computation went wrong, for example a loss that is not finite."""

    exit_code = 4


class GateRefused(PipelineError):
    """The new model was refused; the model in use still serves."""

    exit_code = 5


class TransientError(PipelineError):
    """Something outside failed and may work next time: retry the same run id."""

    exit_code = 6
    retryable = True


class CommitError(PipelineError):
    """Publishing failed."""

    exit_code = 7


class CommitConflict(CommitError):
    """Another run published first: refresh and retry."""

    exit_code = 7
    retryable = True


class CommitStateUnknown(CommitError):
    """Nobody knows whether the commit landed: stop; nothing is deleted."""

    exit_code = 8
