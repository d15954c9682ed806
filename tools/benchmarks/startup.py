"""Start-up: what a reader waits for before anything happens. Each is a process of its own, from its start to its end.

``import``, ``help``  the package, and the command line's help, neither of which may load torch
``first step``        a run of one update on ready token files, checkpoint and record included, over one of no update's
                      parts: everything but training
``resume``            a run of the study's size that finds a checkpoint at its last step but one
``rebuild``           ``python -m nfbook build smoke`` when nothing has changed
``checkpoint``        writing one: model, optimiser, schedule, random state and telemetry, while training waits
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmarks.common import ROOT, Options, Section, Target, alternate, spread, timed


NO_TORCH = "import sys, nfcore; sys.exit('torch' in sys.modules)"
RUN = """
model: {shape: gpt2-6x64, init: width, norm: none, tie_word_embeddings: false}
data: {corpus: CORPUS, vocab_size: 1024, context: 128}
training: {learning_rate: 0.004, eval_sequences: 64}
"""


def run(options: Options) -> Section:
    section = Section()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "run.yaml").write_text(RUN.replace("CORPUS", json.dumps(options.corpus)))
        environment = {
            **os.environ,
            "NFCORE_RUNS": str(folder / "runs"),
            "NFCORE_DATA": str(folder / "tokens"),
            "PYTHONPATH": str(ROOT),
        }

        def process(*arguments: str, where: Path = ROOT) -> float:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], cwd=where, env=environment, check=True, stdout=subprocess.DEVNULL
            )
            return time.perf_counter() - start

        def train(*settings: str) -> float:
            return process("-m", "nfcore", "train", str(folder / "run.yaml"), *settings)

        def resume() -> float:
            shutil.rmtree(folder / "runs", ignore_errors=True)
            shutil.copytree(folder / "interrupted", folder / "runs")
            return train(*interrupted)

        interrupted = ("training.steps=3", "training.save_every=2", "training.eval_every=3")
        _interrupt(folder, environment, interrupted)  # makes the token files too
        sides: dict[str, Callable[[], float]] = {
            "python": lambda: process("-c", "pass"),
            "import": lambda: process("-c", NO_TORCH),
            "help": lambda: process("-m", "nfcore", "--help"),
            "first step": lambda: train("training.steps=1", "fresh=true"),
            "resume": resume,
        }
        if not options.small:
            process("-m", "nfbook", "build", "smoke")
            sides["rebuild"] = lambda: process("-m", "nfbook", "build", "smoke")
        samples = alternate(sides, options.repeats, options.warmup)
    section.rows = [{"kind": "startup", "what": name, "seconds": spread(values)} for name, values in samples.items()]
    for shape, vocabulary in (("gpt2-2x32", 300),) if options.small else (("gpt2-6x64", 1024), ("gpt2-124m", 50257)):
        section.rows.append(checkpoint(shape, vocabulary, options))
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    section.targets = [
        Target("import nfcore, without torch", seconds["import"], 0.5, "s", at_least=False),
        Target("python -m nfcore --help, without torch", seconds["help"], 0.5, "s", at_least=False),
    ]
    return section


def checkpoint(shape: str, vocabulary: int, options: Options) -> dict[str, Any]:
    from types import SimpleNamespace

    import numpy as np

    from nfcore.training import Training
    from tools.benchmarks.training import experiment

    tokens = np.zeros((1, 32), np.uint16)
    data: Any = SimpleNamespace(train=tokens, validation=tokens, hash="random")
    with tempfile.TemporaryDirectory() as folder:
        training = Training(experiment(shape, vocabulary, 32, 1), data, Path(folder))
        training.update()  # the optimiser has its moments now
        times = [timed(training.save) for _ in range(1 + options.repeats)][1:]
        written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {"kind": "checkpoint", "shape": shape, "bytes": written, "seconds": spread(times)}


def _interrupt(folder: Path, environment: dict[str, str], settings: tuple[str, ...]) -> None:
    """Leave in ``interrupted`` what a run leaves that was killed after its checkpoint at step 2."""
    kill = (
        "import os, sys; from nfcore import training; from nfcore.__main__ import main\n"
        "training._finish = lambda *arguments: os._exit(0)\n"
        f"main(['train', {str(folder / 'run.yaml')!r}, *{list(settings)!r}, 'fresh=true', '--quiet'])"
    )
    subprocess.run([sys.executable, "-c", kill], env=environment, check=True, stdout=subprocess.DEVNULL)
    shutil.move(folder / "runs", folder / "interrupted")
