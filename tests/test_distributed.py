"""Several processes on one machine, connected by gloo: the same run as one process makes, and its faults.

All jobs but that of torchrun are forked, one after another, from one process that has imported everything.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import numpy as np
import pytest
import torch
import yaml
from torch.distributed.tensor import DTensor
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from nfbook.presets import train_on_all
from nfcore import faults, runs, train
from nfcore.settings import Experiment, project_root
from nfcore.training import Training
from tests.test_training import at_step, record, table, weights


class Job(NamedTuple):
    processes: int
    settings: dict[str, Any]
    sharded: bool = False
    fault: int | None = None  # the signal that process 1 alone gets in the sixth update; the job is started again
    resumed: int = 0  # the step that it then goes on from


JOBS = {
    "of a notebook, one dies": Job(2, {"micro_batch_size": 2}, fault=signal.SIGKILL, resumed=4),
    "accumulating": Job(4, {"micro_batch_size": 1}),
    # of a signal to one process the others hear when they log or save
    "sharded, stopped": Job(2, {"micro_batch_size": 2, "log_every": 100}, True, signal.SIGTERM, 8),
    "sharded by torchrun": Job(2, {"micro_batch_size": 2, "optimizer": "hf_adamw", "schedule": "hf_linear"}, True),
}


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


def watched(name: str, fault: int | None, experiment: Experiment) -> None:
    """Train in one process of a job, and note what no other can see."""
    rank, seen = torch.distributed.get_rank(), {"passes": 0}
    no_sync, run, end = DistributedDataParallel.no_sync, Training.run, accelerate.Accelerator.end_training

    def counting(model: Any) -> Any:
        seen["passes"] += 1
        return no_sync(model)

    def looking(self: Training) -> None:
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        halves = [p for p in matrices if isinstance(p, DTensor) and 2 * p.to_local().numel() == p.numel()]
        seen["halved"], seen["seed"] = len(halves) / len(matrices), torch.initial_seed()
        run(self)

    def parting(self: accelerate.Accelerator) -> None:
        seen["wrappers"] = sum(type(o) is DistributedDataParallel for o in gc.get_objects())
        end(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedDataParallel, "no_sync", counting)
        patch.setattr(Training, "run", looking)
        patch.setattr(accelerate.Accelerator, "end_training", parting)
        if fault and rank == 1:
            at_step(5, lambda: os.kill(os.getpid(), fault), patch)
        try:
            train(experiment, fsdp=JOBS[name].sharded)
        except faults.Stopped as stopped:
            name, seen["said"] = f"{name} at first", str(stopped)
    (runs.runs_dir() / f"{name}-{rank}.json").write_text(json.dumps(seen))


def fork_all() -> None:
    """Make the runs of ``JOBS`` whose settings come as YAML."""
    for name, settings in yaml.safe_load(sys.stdin).items():
        experiment, job = Experiment.from_dict(settings), JOBS[name]
        for fault in (job.fault, None) if job.fault else (None,):
            fork = partial(accelerate.debug_launcher, partial(watched, name, fault))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(accelerate, "notebook_launcher", lambda _, *args, fork=fork, **more: fork(*args, **more))
                if fault == signal.SIGKILL:
                    with pytest.raises(ProcessExitedException, match="SIGKILL"):
                        fork((experiment,), job.processes)
                    assert runs.read_record(runs.runs_dir() / experiment.id) is None
                elif "notebook" in name:  # processes of the CPU stand in for GPUs; three would not divide the batch
                    patch.setattr(torch.cuda, "device_count", lambda: 3)
                    train_on_all(experiment)
                else:
                    fork((experiment,), job.processes)


def test_several_processes_make_the_run_of_one(tiny, tmp_path, monkeypatch):
    """One test, since its jobs share a process."""
    place, model = tmp_path / "several", {"activation": "learnable_leaky_relu"}
    place.mkdir()
    made = {name: tiny(training=job.settings, model=model) for name, job in JOBS.items()}
    forked = {name: experiment.to_dict() for name, experiment in made.items()}
    file = place / "experiment.yaml"
    file.write_text(yaml.safe_dump(forked.pop("sharded by torchrun")))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "-m", "nfcore", "train", str(file), "--fsdp"]
    forks = ["-c", "from tests.test_distributed import fork_all; fork_all()"]
    options = dict(capture_output=True, text=True, cwd=project_root(), env={**os.environ, "NFCORE_RUNS": str(place)})
    said = ""
    for command, given in ((forks, yaml.safe_dump(forked)), (torchrun, None)):
        done = subprocess.run([sys.executable, *command], input=given, timeout=400, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        said += done.stdout
    assert said.count("perplexity") == 1  # the first process alone speaks, and forks have no command line

    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "alone"))
    for name, job in JOBS.items():
        found = place / made[name].id
        assert record(found)["provenance"]["processes"] == job.processes
        assert not list(found.glob("checkpoints/*")), name
        assert not job.resumed or said.count(f"resumes at step {job.resumed}\n") == 1, name
        assert_close(train(made[name], quiet=True), found)
        for rank in range(0 if "torchrun" in name else job.processes):
            seen = json.loads((place / f"{name}-{rank}.json").read_text())
            assert seen["halved"] == job.sharded, name
            assert job.resumed or seen["seed"] == rank, "dropout is another one in each process"
            assert seen["wrappers"] == 0, "torch may then wait for ever"
            # Gradients are reduced once an update, in the last of its micro-batches.
            passes = (10 - job.resumed) * (8 // job.processes // job.settings["micro_batch_size"] - 1)
            assert job.sharded or seen["passes"] == passes > 0, name
    for rank in range(2):
        seen = json.loads((place / f"sharded, stopped at first-{rank}.json").read_text())
        assert "stopped at step 8 of 10; the same command goes on from the last checkpoint" in seen["said"]
