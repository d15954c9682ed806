"""What all benchmarks share: rounds of alternating sides, medians with their spread, peak memory, provenance.

A section is a module with ``run(options) -> Section``. Its rows are plain dictionaries, one a measurement, and its
targets say what was wanted and what was measured; ``results/<section>.json`` holds both with the provenance.
"""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "tools" / "benchmarks" / "results"


@dataclass(frozen=True)
class Options:
    """``repeats``: counted rounds of a comparison. ``small``: the least sizes, to try the code, not the machine.
    ``corpus``: as ``data.corpus``. ``save``: a section may call it with what it has so far, in case it is cut off."""

    repeats: int = 5
    threads: int = 2
    small: bool = False
    nanogpt: Path | None = None
    corpus: str = "python-source"
    save: Callable[[Section], None] = lambda section: None

    @property
    def warmup(self) -> int:
        """Rounds before the counted ones."""
        return 0 if self.small else 1


@dataclass(frozen=True)
class Target:
    """``measured`` is to be at least (``at_least``) or at most ``wanted``. None where it could not be measured here;
    where nothing is ``wanted`` the figure only stands beside the others."""

    name: str
    measured: float | None
    wanted: float | None
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        if self.measured is None or self.wanted is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass
class Section:
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "targets": [{**asdict(t), "met": t.met} for t in self.targets]}


def alternate(sides: Mapping[str, Callable[[], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Measures of each side, one a round. A round calls every side once, every other round in reverse order, so that
    neither a drift of the machine nor what the other side left behind favours one. ``warmup`` rounds do not count."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + repeats):
        for name in sides if number % 2 == 0 else reversed(list(sides)):
            gc.collect()
            value = sides[name]()
            if number >= warmup:
                samples[name].append(value)
    return samples


def timed(side: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def device() -> str:
    """``cuda`` where torch finds such a device, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def now() -> float:
    """The clock, in seconds, when all that was given to a GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function: Callable[[], Any], calls: int = 1) -> Callable[[], float]:
    """A side for :func:`alternate`: the seconds of one call, as a mean over ``calls`` in a row."""

    def side() -> float:
        start = now()
        for _ in range(calls):
            function()
        return (now() - start) / calls

    return side


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest of the rounds, and all of them."""
    return {
        "median": statistics.median(samples),
        "low": min(samples),
        "high": max(samples),
        "samples": [float(f"{x:.6g}") for x in samples],
    }


def ratio(samples: Mapping[str, Sequence[float]], side: str, against: str) -> dict[str, Any]:
    """``side`` over ``against``, round by round."""
    return spread([a / b for a, b in zip(samples[side], samples[against], strict=True)])


def in_a_process(function: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """The result of ``function`` in a fresh process of its own, and by how many bytes that process's resident memory
    rose above where it stood when the call began (Linux's own high-water mark, reset before the call).

    ``function`` and its arguments have to be importable and picklable. Raises what it raises.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call, function, args).result()


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, int]:
    before = _reset_peak()
    result = function(*args)
    return result, _status("VmHWM") - before


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; memory is measured on Linux")


def provenance(options: Options) -> dict[str, Any]:
    """Commit, versions, hardware and threads of a measurement."""
    from nfcore.machine import device_name, git_commit, package_version
    from nfcore.runs import MEASUREMENT_VERSION

    return {
        "commit": git_commit(),
        "measurement": MEASUREMENT_VERSION,
        **{name: package_version(name) for name in ("torch", "transformers", "accelerate", "tokenizers", "datasets")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "repeats": options.repeats,
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }
