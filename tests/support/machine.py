"""A process that believes to be a machine of its own: `python -m tests.support.machine NAME` promotes what it is told.

It reads numbers of versions of digits-cnn from standard input, and writes each result as a line of JSON.
"""

import json
import platform
import sys

platform.node = lambda: sys.argv[1]

from drilldown.learning import data  # noqa: E402 (the name comes first)
from drilldown.registry import registry  # noqa: E402
from drilldown.registry.verify import Verifier  # noqa: E402
from drilldown.tracking import store  # noqa: E402

if __name__ == "__main__":
    store.quiet_mlflow()
    store.connect()
    digits = data.load("digits")
    with Verifier() as verifier:
        verifier.start()
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            done = registry.promote("digits-cnn", line.strip(), digits, why="a test", verifier=verifier)
            print(json.dumps([done.champion, done.reason]), flush=True)
