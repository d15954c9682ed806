"""How many cases a test tried, for whoever counts them over many tests and runs."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def counted(kind: str) -> Iterator[Counter[str]]:
    """A counter of ``cases``, and of ``losses``: what should not have been lost, let through or raised.

    At the end ``{"kind", "cases", "losses"}`` is added as a JSON line to the file that the environment's
    ``NFCORE_TORTURE_LOG`` names, if it does. A failed test is a loss.
    """
    count = Counter(cases=0, losses=0)
    try:
        yield count
    except BaseException:
        count["losses"] = max(1, count["losses"])
        raise
    finally:
        if log := os.environ.get("NFCORE_TORTURE_LOG"):
            with open(log, "a", encoding="utf-8") as file:  # one write, which does not mix with others'
                file.write(json.dumps({"kind": kind, **count}) + "\n")
