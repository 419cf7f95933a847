"""A stand-in for Ctrl-C in the middle of a training."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from drilldown.learning import train


@contextmanager
def interrupted_after_an_epoch() -> Iterator[None]:
    """Interrupt every training in this context after the first epoch that it trains."""
    fit = train.fit

    def one_epoch(*args):
        yield next(fit(*args))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", one_epoch)
        yield
