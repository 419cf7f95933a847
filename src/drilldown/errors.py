"""The errors that end a command in one line, each with its exit code."""

import math
import reprlib


class DrilldownError(Exception):
    """Something went wrong that the user can be told in one line."""

    exit_code = 1


class ParameterError(DrilldownError, ValueError):
    """A parameter has a value that it does not take; the message names the parameter, the value and what it takes."""

    exit_code = 2


class StepError(DrilldownError):
    """A step's file lacks something that every step declares."""


class DataError(DrilldownError):
    """The data cannot be had, or fails its checksum."""


class UnreachableDataError(DataError):
    """No mirror has the data: the one reason for which `dataset=auto` takes other data."""


class EngineError(DrilldownError):
    """The kernels of the Numba engine cannot be compiled."""


class DivergedError(DrilldownError):
    """The loss is not a finite number."""


class CheckpointError(DrilldownError):
    """A training state cannot be saved, or there is none to resume from."""


class StoreError(DrilldownError):
    """The tracking store does not answer, or cannot take more."""


class RegistryError(DrilldownError):
    """The registry's state does not allow what was asked."""


class VerificationError(RegistryError):
    """A registered model was altered, or does not answer as it did when it was logged."""


class MissingFilesError(VerificationError):
    """Files of a registered model are gone; that says nothing about what they held."""


class PermissionMissingError(RegistryError):
    """The user may not change a registered model."""


class ChampionError(RegistryError):
    """The champion itself fails its checks, so that nothing can be compared with it."""


class PredictError(DrilldownError):
    """A picture cannot be read, or no model can answer."""


class CompareError(DrilldownError):
    """There is nothing to compare."""


class TuneError(DrilldownError):
    """No trial of a search has finished."""


class RecordError(DrilldownError):
    """The store has no run to record."""


class ClusterError(DrilldownError):
    """The cluster does not answer, or cannot train this."""


class NestedError(DrilldownError):
    """At least one nested training failed."""


def check(
    field: str,
    value: object,
    *,
    whole: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raise ParameterError unless `value` is a finite number in [low, high] and in (above, below)."""
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high and above < value < below):  # type: ignore[operator]
        bounds = [
            f"{words} {bound:,}"
            for words, bound in [("at least", low), ("at most", high), ("above", above), ("below", below)]
            if math.isfinite(bound)
        ]
        kind_name = "a whole number" if whole else "a number"
        raise ParameterError(f"{field} is {reprlib.repr(value)}: it takes {kind_name} {' and '.join(bounds)}".rstrip())
