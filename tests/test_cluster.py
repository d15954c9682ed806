"""The grid on a cluster: through Snakemake's executors, with the resources of the plan, and the records of a local run.

Kubernetes is a stand-in that runs each pod as a process here; SLURM is a real one, started on loopback where it is
installed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfbook import cost
from nfbook.__main__ import main
from nfbook.presets import Preset
from nfcore.settings import Experiment
from nfcore.store import verify
from tests.conftest import ROOT


# All fields of a record but these are the same on any machine with the same processor.
TIMED = ("seconds", "wall_seconds", "tokens_per_second", "finished")


@pytest.fixture(scope="module")
def design(corpus: Path) -> dict[str, Any]:
    """A study of two runs."""
    data = dict(corpus=str(corpus), vocab_size=300, context=32, packing="packed", split_by="document")
    training = dict(steps=6, batch_size=8, eval_every=3, probe_every=3, save_every=2, log_every=1, threads=1)
    base = dict(models={"gpt2": {"shape": "gpt2-2x32", "init": "width"}}, data=data, training=training, seeds=[1])
    return {"base": base, "stages": {"core": {"SM+R": {}, "SM+G": {}}}}


@pytest.fixture(scope="module")
def project(checkout: Path, design: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkout of its own with that study, and nothing recorded of it."""

    def make(name: str) -> Path:
        root = tmp_path_factory.mktemp("projects") / name
        shutil.copytree(checkout, root, ignore=shutil.ignore_patterns("recorded", "_build", ".snakemake"))
        shutil.copytree(checkout / "data" / "recorded" / "quick", root / "data" / "recorded" / "quick")
        (root / "notebooks" / "params" / "study.yaml").write_text(yaml.safe_dump(design))
        return root

    return make


unquoted = pytest.mark.skipif(" " in sys.executable, reason="Snakemake does not quote Python's path in a job's script")


def study(root: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Train the study of this checkout; the records of its runs, whose files are what the records say."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NFCORE_DATA", "NFCORE_ROOT")}
    kept["NFCORE_RUNS"] = str(root / "elsewhere")
    command = [sys.executable, "-m", "nfbook", "study", "core", *options]
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    with subprocess.Popen(command, cwd=root, env=kept, **piped) as process:
        try:
            printed, _ = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # Snakemake too
            raise
    assert process.returncode == 0, printed
    records = {}
    for path in (root / "elsewhere").glob("*/record.json"):
        record = json.loads(path.read_text())
        verify(path.parent, record)
        records[record["id"]] = record
    assert len(records) == 2
    return records


@pytest.fixture(scope="module")
def local(project: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    """Its records, trained on this machine."""
    return study(project("local"), "--cores", "2")


def without_times(records: Mapping[str, Mapping[str, Any]]) -> str:
    """As JSON, so that it is the bytes that are compared; the files of the runs are in it by their hashes."""
    times = dict.fromkeys(TIMED)
    own = {"sha256": None}  # with those times in it
    return json.dumps([{**r, **own, "provenance": {**r["provenance"], **times}} for _, r in sorted(records.items())])


def profile(root: Path, name: str, changes: Mapping[str, Any]) -> str:
    """A shipped profile with changes, in the way the page tells to make one."""
    settings = yaml.safe_load((root / "workflow" / "profiles" / name / "config.yaml").read_text())
    (root / "mine").mkdir()
    (root / "mine" / "config.yaml").write_text(yaml.safe_dump({**settings, **changes}))
    return "mine"


def asked_for(records: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Megabytes and minutes that the plan gives these runs."""
    experiments = [Experiment.from_dict(record["settings"]) for record in records.values()]
    plans, _ = cost.plan(experiments, cost.usual_device(gpu=False), cost.benchmarked())
    ((megabytes, minutes),) = {(cost.host_memory_mb(plan, gpu=False), cost.minutes(plan) or 0) for plan in plans}
    assert minutes > 0
    return megabytes, minutes


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


@unquoted
def test_grid_through_a_scheduler_gives_the_records_of_a_local_run(
    project: Callable[[str], Path], kubectl: Path, local: dict[str, dict[str, Any]]
) -> None:
    root = project("a cluster")
    cluster = study(root, "--profile", profile(root, "kubernetes", {"seconds-between-status-checks": 1}))
    manifests = [json.loads(path.read_text()) for path in kubectl.glob("*.json")]
    assert len(manifests) == len(cluster), "tokens are prepared by Snakemake itself"
    assert without_times(cluster) == without_times(local)
    megabytes, minutes = asked_for(local)
    for manifest in manifests:
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {"memory": f"{megabytes}M"}
        assert container["resources"]["requests"]["cpu"] == "1"
        assert pod["activeDeadlineSeconds"] == 60 * minutes
        assert container["workingDir"] == str(root)
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "companion"}}]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/book"}]


def kubernetes(program: str, *arguments: str) -> str:
    command = [str(ROOT / "workflow" / "profiles" / "kubernetes" / program), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def submit(script: str, folder: Path, gpus: int = 0) -> str:
    (folder / "script").write_text(script)
    values = dict(image="i", claim="c", mount="/book", cpus=4, gpus=gpus, mem_mb=9000, minutes=90)
    options = [word for k, v in values.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    return kubernetes("submit", *options, str(folder / "script"))


def test_states_of_a_job(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_running(job: str) -> str:
        until = time.monotonic() + 20
        while (state := kubernetes("status", job)) == "running" and time.monotonic() < until:
            time.sleep(0.05)
        return state

    assert after_running(submit("exit 0", kubectl)) == "success"
    assert after_running(submit("exit 3", kubectl)) == "failed"
    asleep = submit("sleep 60", kubectl, gpus=1)
    (container,) = json.loads((kubectl / f"{asleep}.json").read_text())["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "9000M"}
    assert container["resources"]["limits"] == {"memory": "9000M", "nvidia.com/gpu": "1"}
    assert kubernetes("status", asleep) == "running"
    kubernetes("cancel", asleep)
    assert kubernetes("status", asleep) == "failed"
    monkeypatch.delenv("STAND_IN")  # it then ends with an error
    assert kubernetes("status", "companion-0") == "running", "no answer is no failure"


DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={megabytes}
PartitionName=all Nodes={host} Default=YES
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A SLURM of one node on loopback: controller, node and authentication, ended with the test."""
    programs = {name: shutil.which(name, path=f"/usr/sbin:/sbin:{os.environ['PATH']}") for name in DAEMONS}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"no {', '.join(missing)}; Debian has them as slurmctld, slurmd, slurm-client and munge")
    if os.geteuid():
        pytest.skip("slurmd starts jobs only as root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    values = dict(folder=folder, host=socket.gethostname().split(".")[0], user="root", cores=os.cpu_count())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    ports = dict(controller=free_port(), node=free_port())
    (folder / "slurm.conf").write_text(SLURM.format(**values, **ports, megabytes=memory))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    # The plugin starts srun without the variable, and looks for /etc/slurm/slurm.conf, which is not ours to write.
    (folder / "srun").write_text(f"#!/bin/sh\nSLURM_CONF='{folder}/slurm.conf' exec '{shutil.which('srun')}' \"$@\"\n")
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        [programs["munged"], "--foreground", "--force", f"--socket={folder}/munge/socket", *munge],
        [programs["slurmctld"], "-D", "-f", folder / "slurm.conf"],
        [programs["slurmd"], "-D", "-f", folder / "slurm.conf"],
    ]
    processes = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(0.5)
        until = time.monotonic() + 30
        ready = ["sinfo", "--noheader", "--format=%T"]
        while subprocess.run(ready, capture_output=True, text=True).stdout.strip() != "idle":
            assert time.monotonic() < until, "\n".join(log.read_text() for log in folder.glob("*.log"))
            time.sleep(0.2)
        yield
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@unquoted
@pytest.mark.usefixtures("slurm")
def test_grid_through_slurm_gives_the_records_of_a_local_run(
    project: Callable[[str], Path], local: dict[str, dict[str, Any]]
) -> None:
    root = project("slurm")
    no_accounting = {"slurm-no-account": True, "slurm-status-command": "squeue"}
    quick = {"slurm-init-seconds-before-status-checks": 2, "seconds-between-status-checks": 1}
    cluster = study(root, "--profile", profile(root, "slurm", {**no_accounting, **quick}))
    assert without_times(cluster) == without_times(local)
    megabytes, minutes = asked_for(local)
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout
    jobs = [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in shown.splitlines()]
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * len(cluster)
    for job in jobs:
        assert (job["MinMemoryNode"], job["CPUs/Task"]) == (f"{megabytes}M", "1")
        assert job["TimeLimit"] == f"{minutes // 60:02}:{minutes % 60:02}:00"
        assert "gpu" not in job["TRES"]


def test_login_node_needs_no_gpu(checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("NFCORE_ROOT", str(checkout))
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("asks for a GPU"))
    profile = str(checkout / "workflow" / "profiles" / "kubernetes")
    assert main(["build", "paper", "--profile", profile, "--hardware", "H100", "--dry-run"]) == 0
    assert "27 to train" in capfd.readouterr().out


@pytest.mark.parametrize("hardware", ["H100", "an abacus"])
def test_runs_on_a_gpu_ask_for_what_is_planned(hardware: str, checkout: Path, tmp_path: Path) -> None:
    experiment = Preset.load("paper").experiments()[0]
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--forcerun", "run", "--until", "run", "--cores", "8"]
    command += ["--config", "preset=paper", f"hardware={hardware}", "--", str(tmp_path / experiment.id / "record.json")]
    environment = {**os.environ, "NFCORE_RUNS": str(tmp_path)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = cost.plan([experiment], hardware)[0][0]
    shown = done.stdout.partition("rule run:")[2]
    assert "threads: 4" in shown
    for value in (f"mem_mb={cost.host_memory_mb(plan, gpu=True)}", f"runtime={cost.minutes(plan) or 720}", "gpu=1"):
        assert value in shown


def test_wrong_options(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("NFCORE_ROOT", str(checkout))
    slurm = str(checkout / "workflow" / "profiles" / "slurm")
    for options, message in (
        (("--profile", "nowhere"), "--profile: 'nowhere' is not a folder"),
        (("--hardware", "H99"), "--hardware: 'H99' is not one of H200, H100"),
        (("--profile", slurm), "--profile: '/a path/python' has a space"),  # which Snakemake would not quote
    ):
        monkeypatch.setattr(sys, "executable", "/a path/python")
        assert main(["build", "smoke", *options]) == 2
        assert message in capsys.readouterr().err
