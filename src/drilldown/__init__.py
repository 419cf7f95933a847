"""An MLflow-managed model lifecycle: from a first baseline to a registered champion.

As a library (docs/library.md), `import drilldown` gives the functions of `drilldown.library`. That module is imported
when one of them is first used: PyTorch and MLflow take seconds, and `--help` needs neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drilldown.library import Recipe, evaluate, fit, frame, load_champion, load_data, load_step

__all__ = ["Recipe", "evaluate", "fit", "frame", "load_champion", "load_data", "load_step"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from drilldown import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
