"""The champion as it is now: it is loaded again, with the checks of `predict`, once the alias has moved."""

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from drilldown.errors import DrilldownError, PredictError
from drilldown.inference import predict
from drilldown.inference.reader import Reader
from drilldown.messages import one_line, printable
from drilldown.registry.champion import get_champion
from drilldown.tracking import store

LOOK_SECONDS = 1.0  # between two looks at the alias
WAIT_SECONDS = 5.0  # for a look: a store that does not answer must not hold up the answers


@dataclass(frozen=True)
class Champion:
    """A champion that passed its checks, and what reads pictures with it."""

    name: str
    version: str
    readers: Mapping[bool, Reader]  # by whether they read several digits in a picture


class CurrentChampion:
    """The champion of a registered model, looked up when it is asked for, at most once a second.

    If the store does not answer, the champion that is loaded stays. If the alias is gone, or leads to a version whose
    files were altered, there is none until that is mended. Threads may share an instance.
    """

    def __init__(self, name: str) -> None:
        """Load the champion. Raises: PredictError when there is none that passes its checks."""
        self.name = name
        self._found: Champion | str = ""  # the champion, or why there is none
        self._key: tuple[str, int] | None = None  # of the version that was found
        self._take_up()
        self._looked_at = time.monotonic()
        self._looking = threading.Lock()  # held during a look
        self.get()

    def get(self) -> Champion:
        """Return the champion. Raises: PredictError when there is none that passes its checks."""
        if time.monotonic() - self._looked_at > LOOK_SECONDS and self._looking.acquire(blocking=False):
            look = threading.Thread(target=self._look, daemon=True)
            look.start()
            look.join(WAIT_SECONDS)
        if isinstance(self._found, str):
            raise PredictError(self._found)
        return self._found

    def _look(self) -> None:
        try:
            # What the store raises: whoever asks gets the champion that is loaded.
            with contextlib.suppress(MlflowException, OSError), store.short_timeouts():
                self._take_up()
        finally:
            self._looked_at = time.monotonic()
            self._looking.release()

    def _take_up(self) -> None:
        version = get_champion(self.name)
        if version is None:
            self._found = f"{self.name} has no champion"
            return
        # A model that was deleted and created again counts its versions from 1.
        key = (str(version.version), version.creation_timestamp)
        if isinstance(self._found, Champion) and key == self._key:
            return
        try:
            model, _ = predict.load(f"models:/{self.name}/{version.version}")
            readers = {several: Reader(model, several=several) for several in (False, True)}
            self._found = Champion(self.name, str(version.version), readers)
        except (DrilldownError, OSError) as error:
            if isinstance(self._found, Champion) and isinstance(error.__cause__, MlflowException):
                return  # the store failed in the middle of it; the next look tries again
            self._found = printable(one_line(str(error)))
        self._key = key
