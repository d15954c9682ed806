"""Several processes on one machine, connected by gloo: the same run as one process makes, and its faults."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nfcore import runs, train
from nfcore.settings import Experiment, project_root
from tests.test_training import metric, record, table, weights


Tiny = Callable[..., Experiment]


def launch(experiment: Experiment, processes: int, *options: str) -> list[str]:
    """The command that trains ``experiment`` with torchrun, its settings beside its runs."""
    file = runs.runs_dir() / f"{experiment.id}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(experiment.to_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "nfcore"]
    return [*torchrun, "train", str(file), *options]


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=project_root(), **options)


def assert_close(run: Path, other: Path) -> None:
    """The same steps, and values equal within the error of sums in another order."""
    for name in runs.TABLES:
        one, two = table(run, name), table(other, name)
        assert one.columns.equals(two.columns)
        for column in one.columns:
            if name == "metrics" and column == "name":
                assert one[column].equals(two[column])
            else:
                np.testing.assert_allclose(one[column], two[column], rtol=1e-5, atol=1e-6, err_msg=column)
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name, expected in ours.items():
        torch.testing.assert_close(theirs[name], expected, rtol=0, atol=1e-5)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("processes", "options", "changes"),
    [
        (2, (), {}),
        (4, (), {"micro_batch_size": 1}),
        (2, ("--fsdp",), {"micro_batch_size": 2}),
        (2, ("--fsdp",), {"micro_batch_size": 2, "optimizer": "hf_adamw", "schedule": "hf_linear"}),
    ],
    ids=["two", "four, accumulating", "two, sharded", "two, sharded, the paper's optimiser"],
)
def test_equals_the_run_of_one_process(
    processes: int, options: tuple[str, ...], changes: dict[str, Any], tiny: Tiny, elsewhere: Path
) -> None:
    experiment = tiny(training=changes, model={"activation": "learnable_leaky_relu"})
    done = run(launch(experiment, processes, *options))
    assert done.returncode == 0, done.stderr[-3000:]
    found = elsewhere / experiment.id
    made = record(found)
    assert made["provenance"]["processes"] == processes
    assert done.stdout.count("perplexity") == 1  # of the first process alone
    assert not list(found.glob("checkpoints/*"))
    os.environ["NFCORE_RUNS"] = str(elsewhere / "alone")
    alone = train(experiment, quiet=True)
    assert_close(alone, found)
    assert made["final"]["step"] == record(alone)["final"]["step"]
    assert metric(alone, "train_loss").index.equals(metric(found, "train_loss").index)


def workers(parent: int) -> dict[int, int]:
    """Process ids by rank of the processes below ``parent``."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                variables = dict(v.partition("=")[::2] for v in (path / "environ").read_text().split("\0"))
                if "RANK" in variables:
                    found[int(variables["RANK"])] = int(path.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize(("fault", "options"), [("worker dies", ()), ("job is asked to stop", ("--fsdp",))])
def test_a_job_that_ends_early_names_the_cause_and_resumes(
    fault: str, options: tuple[str, ...], tiny: Tiny, elsewhere: Path
) -> None:
    experiment = tiny(training={"steps": 80, "save_every": 20, "eval_every": 40, "probe_every": 40, "log_every": 5})
    command = launch(experiment, 2, *options)
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project_root())
    saved = elsewhere / experiment.id / "checkpoints"
    while not list(saved.glob("*/manifest.json")):
        assert job.poll() is None, job.communicate()[1][-3000:]
        time.sleep(0.05)
    if fault == "worker dies":
        os.kill(workers(job.pid)[1], signal.SIGKILL)
    else:
        job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert ("Signal 9 (SIGKILL)" if fault == "worker dies" else "goes on from the last checkpoint") in said, said[
        -3000:
    ]
    assert runs.read_record(elsewhere / experiment.id) is None
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumes at step" in done.stdout
    os.environ["NFCORE_RUNS"] = str(elsewhere / "alone")
    alone, resumed = metric(train(experiment, quiet=True), "eval_loss"), metric(elsewhere / experiment.id, "eval_loss")
    # The order of sums tells after so many updates, of which Adam makes each about as large as the learning rate.
    np.testing.assert_allclose(resumed, alone, atol=1e-3)


SHARDED = """
import os, sys, accelerate, yaml
from torch.distributed.tensor import DTensor
from nfcore import training
from nfcore.settings import Experiment

start = training.Training.run

def run(self):
    matrices = [p for p in self.model.parameters() if p.dim() > 1]
    halves = [p for p in matrices if isinstance(p, DTensor) and 2 * p.to_local().numel() == p.numel()]
    os.write(1, b"%d of %d matrices halved\\n" % (len(halves), len(matrices)))
    start(self)

training.Training.run = run
experiment = Experiment.from_dict(yaml.safe_load(sys.stdin))
accelerate.debug_launcher(lambda: training.train(experiment, fsdp=True, quiet=True), num_processes=2)
"""


def test_shards_weights_over_processes(tiny: Tiny, elsewhere: Path) -> None:
    experiment = tiny(training={"steps": 2})
    done = run([sys.executable, "-c", SHARDED], input=yaml.safe_dump(experiment.to_dict()))
    assert done.returncode == 0, done.stderr[-3000:]
    count = len([w for w in weights(elsewhere / experiment.id).values() if w.dim() > 1])
    assert done.stdout.count(f"{count} of {count} matrices halved\n") == 2


LAUNCH = """
import gc, os, sys, accelerate, torch, yaml
from torch.nn.parallel import DistributedDataParallel
from nfbook.presets import train_on_all
from nfcore.settings import Experiment

no_sync, alone = DistributedDataParallel.no_sync, []
DistributedDataParallel.no_sync = lambda model: alone.append(1) or no_sync(model)
torch.cuda.device_count = lambda: 3

def parting(self, end=accelerate.Accelerator.end_training):
    left = sum(type(o) is DistributedDataParallel for o in gc.get_objects())
    os.write(1, b"parts with %d wrappers\\n" % left)
    end(self)

accelerate.Accelerator.end_training = parting

def launcher(train, arguments, num_processes):
    def counting(*arguments):
        train(*arguments)
        os.write(1, b"%d passes without reduction\\n" % len(alone))  # at once, for both write
    accelerate.debug_launcher(counting, arguments, num_processes)

accelerate.notebook_launcher = launcher
train_on_all(Experiment.from_dict(yaml.safe_load(sys.stdin)))
"""


def test_a_notebook_trains_on_all_gpus(tiny: Tiny, elsewhere: Path) -> None:
    """Two processes of the CPU stand in for GPUs; three would not divide the batch. Gradients are reduced once an
    update, in the last of its four micro-batches."""
    experiment = tiny(training={"micro_batch_size": 1})
    done = run([sys.executable, "-c", LAUNCH], input=yaml.safe_dump(experiment.to_dict()))
    assert done.returncode == 0, done.stderr[-3000:]
    assert record(elsewhere / experiment.id)["provenance"]["processes"] == 2
    assert done.stdout.count("30 passes without reduction\n") == 2
    assert done.stdout.count("parts with 0 wrappers\n") == 2, "torch may then wait for ever"
