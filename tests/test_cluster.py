"""The grid on a cluster: through Snakemake's executors, with the resources of the plan, and the records of a local run.

Kubernetes is a stand-in that runs each pod as a process here; SLURM is a real one, started on loopback where it is
installed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfcore import cost, runs
from nfcore.__main__ import main
from nfcore.settings import Experiment
from tests.conftest import ROOT


# Of a record all but these are the same on any machine with the same processor.
TIMED = ("seconds", "wall_seconds", "tokens_per_second", "finished")


@pytest.fixture(scope="module")
def design(corpus: Path) -> dict[str, Any]:
    """A study of two runs."""
    data = dict(corpus=str(corpus), vocab_size=300, context=32, packing="packed", split_by="document")
    training = dict(steps=6, batch_size=8, eval_every=3, probe_every=3, save_every=2, log_every=1, threads=1)
    base = dict(models={"gpt2": {"shape": "gpt2-2x32", "init": "width"}}, data=data, training=training, seeds=[1])
    return {"base": base, "stages": {"core": {"SM+R": {}, "SM+G": {}}}}


@pytest.fixture
def project(checkout: Path, design: dict[str, Any], tmp_path: Path) -> Callable[[str], Path]:
    """A checkout of its own with that study, and nothing recorded of it."""

    def make(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(checkout, root, ignore=shutil.ignore_patterns("recorded", "_build", ".snakemake"))
        shutil.copytree(checkout / "data" / "recorded" / "quick", root / "data" / "recorded" / "quick")
        (root / "notebooks" / "params" / "study.yaml").write_text(yaml.safe_dump(design))
        return root

    return make


def study(root: Path, *options: str, **environment: str) -> dict[str, dict[str, Any]]:
    """Train the study of this checkout; the records of its runs, whose files are what the records say."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NFCORE_RUNS", "NFCORE_DATA", "NFCORE_ROOT")}
    command = [sys.executable, "-m", "nfcore", "study", "core", *options]
    done = subprocess.run(command, cwd=root, env={**kept, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    records = {}
    for path in (root / "runs").glob("*/record.json"):
        record = json.loads(path.read_text())
        runs.verify(path.parent, record)
        records[record["id"]] = record
    assert len(records) == 2
    return records


def without_times(records: dict[str, dict[str, Any]]) -> str:
    """As JSON, so that it is the bytes that are compared."""
    for record in records.values():
        for name in TIMED:
            del record["provenance"][name]
    return json.dumps(records, sort_keys=True)


# --- Kubernetes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in first in PATH; the folder in which it keeps its Jobs."""
    jobs, program = tmp_path / "jobs", tmp_path / "bin" / "kubectl"
    jobs.mkdir()
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{ROOT}/tests/kubectl.py' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(jobs))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return jobs


def test_grid_through_a_scheduler_gives_the_records_of_a_local_run(
    project: Callable[[str], Path], kubectl: Path, design: dict[str, Any]
) -> None:
    local = study(project("local"), "--cores", "2")
    root = project("a cluster")
    profile = yaml.safe_load((root / "profiles" / "kubernetes" / "config.yaml").read_text())
    (root / "quick").mkdir()
    (root / "quick" / "config.yaml").write_text(yaml.safe_dump({**profile, "seconds-between-status-checks": 1}))
    cluster = study(root, "--profile", "quick")
    manifests = [json.loads(path.read_text()) for path in kubectl.glob("*.json")]
    assert len(manifests) == len(cluster), "tokens are prepared by Snakemake itself"
    assert without_times(cluster) == without_times(local)

    for manifest in manifests:
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        experiment = Experiment.from_dict(next(iter(local.values()))["settings"])
        plan = cost.plan([experiment], cost.usual_device(gpu=False))[0][0]
        assert container["resources"]["limits"] == {"memory": f"{cost.host_memory_mb(plan, gpu=False)}M"}
        assert container["resources"]["requests"]["cpu"] == "1"
        assert pod["activeDeadlineSeconds"] == 60 * (cost.minutes(plan) or 0) > 0
        assert container["workingDir"] == str(root)
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "companion"}}]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/book"}]


def kubernetes(program: str, *arguments: str) -> str:
    command = [str(ROOT / "profiles" / "kubernetes" / program), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def submit(script: str, folder: Path, gpus: int = 0) -> str:
    (folder / "script").write_text(script)
    values = dict(image="i", claim="c", mount="/book", cpus=4, gpus=gpus, mem_mb=9000, minutes=90)
    options = [word for k, v in values.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    return kubernetes("submit", *options, str(folder / "script"))


def test_a_gpu_is_a_limit_of_the_pod(kubectl: Path) -> None:
    job = submit("true", kubectl, gpus=1)
    (container,) = json.loads((kubectl / f"{job}.json").read_text())["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "9000M"},
        "limits": {"memory": "9000M", "nvidia.com/gpu": 1},
    }


def test_states_of_a_job(kubectl: Path) -> None:
    def after_running(job: str) -> str:
        until = time.monotonic() + 20
        while (state := kubernetes("status", job)) == "running" and time.monotonic() < until:
            time.sleep(0.05)
        return state

    assert after_running(submit("exit 0", kubectl)) == "success"
    assert after_running(submit("exit 3", kubectl)) == "failed"
    asleep = submit("sleep 60", kubectl)
    assert kubernetes("status", asleep) == "running"
    kubernetes("cancel", asleep)
    assert kubernetes("status", asleep) == "failed"


def test_no_answer_is_no_failure(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAND_IN")  # it then ends with an error
    assert kubernetes("status", "companion-0") == "running"


# --- SLURM --------------------------------------------------------------------------------------------------------


# --- the command line -------------------------------------------------------------------------------------------


def test_login_node_needs_no_gpu(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("NFCORE_ROOT", str(checkout))
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("asks for a GPU"))
    profile = str(checkout / "profiles" / "kubernetes")
    assert main(["book", "paper", "--profile", profile, "--hardware", "H100", "--dry-run"]) == 0
    assert "27 to train" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--profile", "nowhere"), "--profile: 'nowhere' is not a folder"),
        (("--hardware", "H99"), "--hardware: 'H99' is not one of H200, H100"),
    ],
)
def test_wrong_options(option: tuple[str, str], message: str, checkout: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("NFCORE_ROOT", str(checkout))
    assert main(["book", "smoke", *option]) == 2
    assert message in capsys.readouterr().err
