"""What can go wrong while a run is trained, each of it injected: the next command goes on, and nothing is lost."""

import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

from nfcore import checkpoints, faults, memory, train
from nfcore.__main__ import main
from nfcore.settings import Experiment, SettingsError, project_root
from nfcore.store import sealed
from nfcore.telemetry import Telemetry
from nfcore.tokens import prepare
from tests.test_training import assert_same_run, at_step, record


Tiny = Callable[..., Experiment]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
ROOT_HERE = sys.platform == "linux" and os.geteuid() == 0


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: Patch) -> Path:
    """An empty directory for runs."""
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    return tmp_path


def steps_of(directory: Path) -> list[int]:
    return sorted(map(checkpoints.step_of, checkpoints.last_first(directory)))


def steps(run: Path) -> list[int]:
    return steps_of(run / "checkpoints")


def kill(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def written(experiment: Experiment, folder: Path) -> str:
    """A file with the settings."""
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment.to_dict()))
    return str(file)


# --- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_of_the_step(number, code, tiny, trained, elsewhere, monkeypatch, capsys):
    before, file = signal.getsignal(number), written(tiny(), elsewhere)
    with monkeypatch.context() as patch:
        at_step(5, lambda: kill(number), patch)
        assert main(["train", file, "--quiet"]) == code
    said = capsys.readouterr().err
    assert said.endswith(f"[{tiny().id}]: stopped at step 6 of 10; {faults.RESUME}\n")
    assert said.count("\n") == 1
    assert signal.getsignal(number) == before
    assert steps(elsewhere / tiny().id) == [4, 6]
    assert main(["train", file]) == 0
    assert "resumes at step 6" in capsys.readouterr().out
    # A resumed run logs where it saved; all else is equal to the last bit.
    assert_same_run(elsewhere / tiny().id, trained)


def test_a_signal_in_the_last_step_finishes(tiny, elsewhere, monkeypatch):
    at_step(9, lambda: kill(signal.SIGTERM), monkeypatch)
    with pytest.raises(faults.Stopped, match="finished"):
        train(tiny(), quiet=True)
    assert record(elsewhere / tiny().id)["final"]["step"] == 10


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted_once(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of ``tiny()`` cut short at once by a second signal after step 9, with checkpoints of 4 and 8."""
    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFCORE_RUNS", str(place))
        at_step(9, kill, patch, times=2)
        with pytest.raises(faults.Stopped):
            train(tiny(), quiet=True)
    assert steps(place / tiny().id) == [4, 8]
    return place / tiny().id


@pytest.fixture
def interrupted(interrupted_once: Path, elsewhere: Path) -> Path:
    """A copy of it where runs now go."""
    return Path(shutil.copytree(interrupted_once, elsewhere / interrupted_once.name))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_no_good_checkpoint_is_a_start_from_nothing(tiny, trained, interrupted, capsys):
    for checkpoint in (interrupted / "checkpoints").iterdir():
        manifest = json.loads((checkpoint / checkpoints.MANIFEST).read_text())
        assert manifest["files"].keys() == {"state.pt", "random-0.pt", Telemetry.FILE}
        assert {*manifest["files"], checkpoints.MANIFEST} == {path.name for path in checkpoint.iterdir()}
        (checkpoint / "state.pt").unlink()
    train(tiny(), quiet=True)
    assert capsys.readouterr().err.count("state.pt: missing") == 2
    assert_same_run(interrupted, trained)


@pytest.mark.parametrize("name", [Telemetry.FILE, "manifest.json"])
def test_a_flipped_byte_is_named_and_the_last_good_checkpoint_used(name, tiny, trained, interrupted, capsys):
    flip(interrupted / "checkpoints/checkpoint-8" / name)
    train(tiny())
    said = capsys.readouterr()
    assert f"checkpoint-8/{name}: " in said.err or name == "manifest.json"
    assert "this checkpoint is passed over" in said.err
    assert "resumes at step 4" in said.out
    assert_same_run(interrupted, trained)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 3}, "checkpoint format 3, this version reads 4"),
        ({"format": 5}, "checkpoint format 5, this version reads 4"),
        ({"processes": 2}, "was made by 2 processes; go on with as many"),
        ({"data": "other"}, r"was made from other tokens, other and not [0-9a-f]{12}; go on with the same corpus"),
    ],
)
def test_checkpoints_of_other_formats_processes_and_tokens_are_refused(changes, said, tiny, interrupted):
    file = interrupted / "checkpoints/checkpoint-8" / checkpoints.MANIFEST
    manifest = {**json.loads(file.read_text()), **changes}
    del manifest["sha256"]
    file.write_text(json.dumps(manifest if changes == {"format": 3} else sealed(manifest)))  # format 3 had no sum
    with pytest.raises(SettingsError, match=rf"checkpoint-8: {said}"):
        train(tiny(), quiet=True)
    assert steps(interrupted) == [4, 8]


def test_no_flipped_bit_of_a_manifest_is_believed(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "state.pt").write_text("whole")
    checkpoints.seal(checkpoint, processes=1, data="e52b188e2c15")
    manifest = checkpoint / checkpoints.MANIFEST
    whole = manifest.read_bytes()
    for place in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        manifest.write_bytes(damaged)
        assert checkpoints.newest(tmp_path) == (None, {}), (place, damaged)
    assert capsys.readouterr().err.count(f"{manifest}: ") == len(whole) * 8


def test_damaged_checkpoints_never_push_out_new_ones(tmp_path, capsys):
    def seal(step: int) -> Path:
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "state.pt").write_text(str(step))
        checkpoints.seal(checkpoint)
        return checkpoint

    for step in (900, 1000):
        (seal(step) / "state.pt").write_text("damaged")
    copy = tmp_path / "checkpoint-1000-backup"  # of a careful user
    copy.mkdir()
    assert checkpoints.newest(tmp_path) == (None, {})
    assert capsys.readouterr().err.count("this checkpoint is passed over") == 2
    for step in (100, 200, 300):
        checkpoints.prune(seal(step))
    assert steps_of(tmp_path) == [200, 300]
    assert checkpoints.newest(tmp_path)[0] == tmp_path / "checkpoint-300"
    assert copy.is_dir()


def test_a_clock_that_jumps_back_deletes_no_newer_checkpoint(tiny, trained, elsewhere, monkeypatch):
    seal = checkpoints.seal

    def jump(checkpoint: Path, **facts: Any) -> None:
        seal(checkpoint, **facts)
        long_ago = time.time() - 1e6 * checkpoints.step_of(checkpoint)
        os.utime(checkpoint, (long_ago, long_ago))

    ticks = iter(range(10**9, 0, -1000))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", jump)
        patch.setattr(time, "time", lambda: float(next(ticks)))
        at_step(13, kill, patch, times=2)
        with pytest.raises(faults.Stopped):
            train(tiny(training={"steps": 20}), quiet=True)
    (run,) = (path.parent for path in elsewhere.glob("*/checkpoints"))
    assert steps(run) == [8, 12]
    made = record(train(tiny(training={"steps": 20}), quiet=True))
    assert 0 < made["provenance"]["seconds"] <= made["provenance"]["wall_seconds"]


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["state.pt", "random-0.pt"])
def test_a_checkpoint_runs_no_code_even_if_its_checksums_are_right(name, tiny, interrupted, tmp_path):
    checkpoint = interrupted / "checkpoints/checkpoint-8"
    torch.save(Payload(tmp_path / "pwned"), checkpoint / name)
    checkpoints.seal(checkpoint, processes=1, data=prepare(tiny().data).hash)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(tiny(), quiet=True)
    assert not (tmp_path / "pwned").exists()


# --- disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk() -> Iterator[Callable[[Path, str], None]]:
    """``disk(place, "size=1m")`` mounts a small file system, or changes the options of the one that is there."""
    mounted = set()

    def mount(place: Path, options: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        again = ["-o", f"remount,{options}"] if place in mounted else ["-o", options, "-t", "tmpfs", "none"]
        done = subprocess.run(["mount", *again, str(place)], capture_output=True, text=True)
        if done.returncode and place not in mounted:
            pytest.skip("may not mount a file system here")
        assert not done.returncode, done.stderr
        mounted.add(place)

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.skipif(not ROOT_HERE, reason="only root may mount a small file system")
@pytest.mark.parametrize("size", ["100k", "500k", "1000k"])
def test_a_full_disk_is_named_and_more_room_is_enough(size, tiny, trained, elsewhere, disk, capsys):
    place, file = elsewhere / tiny().id, written(tiny(), elsewhere)
    disk(place, f"size={size}")
    assert main(["train", file, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in (str(place), "No space left on device", "free some space")), said
    disk(place, "size=50m")
    assert main(["train", file, "--quiet"]) == 0
    assert_same_run(place, trained)


@pytest.mark.skipif(not ROOT_HERE, reason="only root may mount a file system")
def test_a_disk_that_turns_read_only_is_named(tiny, trained, elsewhere, disk, monkeypatch, capsys):
    place, file = elsewhere / tiny().id / "checkpoints", written(tiny(), elsewhere)
    disk(place, "size=50m")
    with monkeypatch.context() as patch:
        at_step(5, lambda: disk(place, "ro"), patch)
        assert main(["train", file, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert str(place / "checkpoint-8") in said
    disk(place, "rw")
    assert main(["train", file]) == 0
    assert "resumes at step 4" in capsys.readouterr().out
    assert_same_run(elsewhere / tiny().id, trained)


def test_no_permission_and_a_vanished_directory_are_named(tiny, tmp_path, monkeypatch, capsys):
    file, gone = written(tiny(), tmp_path), tmp_path / "gone"
    monkeypatch.setenv("NFCORE_RUNS", str(Path(file) / "runs"))
    assert main(["train", file, "--quiet"]) == 2
    assert file in capsys.readouterr().err
    monkeypatch.setenv("NFCORE_RUNS", str(gone))
    at_step(9, lambda: shutil.rmtree(gone), monkeypatch)
    assert main(["train", file, "--quiet"]) == 2
    assert str(gone / tiny().id) in capsys.readouterr().err


# --- two at once ------------------------------------------------------------------------------------------------


def test_of_two_that_train_a_run_one_waits_and_says_so(tiny, trained, elsewhere, capsys):
    (elsewhere / tiny().id).mkdir()
    said, latest = "", time.monotonic() + 60
    with ThreadPoolExecutor(1) as pool:
        with FileLock(elsewhere / tiny().id / ".lock"):
            other = pool.submit(train, tiny())
            while "waits for another process that trains it" not in said:
                assert time.monotonic() < latest, said
                time.sleep(0.01)
                said += capsys.readouterr().err
            shutil.copytree(trained, elsewhere / tiny().id, dirs_exist_ok=True)
        assert other.result(60) == elsewhere / tiny().id
    assert "finished before, reused" in capsys.readouterr().out


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["GPU", "CPU"],
)
def test_out_of_memory_names_the_step_and_what_would_fit(error, tiny, elsewhere, monkeypatch, capsys):
    def fail() -> None:
        raise error

    at_step(2, fail, monkeypatch)
    assert main(["train", written(tiny(), elsewhere), "--quiet"]) == faults.OUT_OF_MEMORY == 4
    said = capsys.readouterr().err
    assert "out of memory at step 3; " in said
    assert "GiB are estimated; training.micro_batch_size=4 (the same result) takes less" in said


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit for the process's memory")
def test_memory_that_really_runs_out(tiny, elsewhere):
    experiment = tiny(model={"hidden_size": 512}, training={"batch_size": 256})
    file = written(experiment, elsewhere)
    prepare(experiment.data)  # before there is a limit
    program = (
        "import resource, sys, psutil\n"
        "from nfcore.__main__ import main\n"
        "import nfcore.training\n"
        "limit = psutil.Process().memory_info().vms + 500_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"sys.exit(main(['train', {file!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=project_root())
    assert done.returncode == faults.OUT_OF_MEMORY, done.stderr
    assert "out of memory at step 1; " in done.stderr
    assert "training.micro_batch_size=" in done.stderr.splitlines()[-1]


def test_a_run_that_will_hardly_fit_is_announced(tiny, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(memory, "limit", lambda: 2**20)
    train(tiny(training={"steps": 1}))
    assert "0.0 of 0.0 GiB are estimated; training.gradient_checkpointing=true takes less" in capsys.readouterr().err


def test_a_process_of_several_takes_its_part(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    alone = memory.limit()
    assert memory.micro_batch(tiny().training) == 8
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.micro_batch(tiny().training) == 2
    assert memory.micro_batch(tiny(training={"micro_batch_size": 4}).training) == 2
    assert "training.micro_batch_size=1 " in memory.advice(tiny())
    assert memory.limit() == alone / 2


# --- surroundings -----------------------------------------------------------------------------------------------


def test_a_bare_environment_is_enough(tiny, trained, tmp_path):
    """Locale C, no HOME, umask 077, a path with spaces and other letters; as root also no network and a checkout that
    cannot be written."""
    place = tmp_path / "a path wïth Ünicode"
    place.mkdir()
    command = [sys.executable, "-m", "nfcore", "train", written(tiny(), place)]
    isolated = ["unshare", "--mount", "--net"]
    root = str(project_root())
    if shutil.which("unshare") and not subprocess.run([*isolated, "true"], capture_output=True).returncode:
        read_only = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
        command = [*isolated, "sh", "-c", read_only, root, *command]
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    environment |= {"NFCORE_RUNS": str(place / "runs"), "NFCORE_DATA": str(place / "tokens")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, umask=0o077)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert_same_run(place / "runs" / tiny().id, trained)
    assert stat.S_IMODE((place / "runs" / tiny().id / "record.json").stat().st_mode) == 0o600


def test_secrets_of_the_environment_stay_there(tiny, elsewhere, monkeypatch, capfd):
    secret = "hf_PlantedByATest0123456789"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, secret)
    at_step(9, lambda: kill(signal.SIGTERM), monkeypatch)
    with pytest.raises(faults.Stopped):
        train(tiny())
    at_step(5, kill, monkeypatch, times=2)
    with pytest.raises(faults.Stopped):  # so that a checkpoint is there too
        train(tiny(seed=1))
    found = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert any(path.name == "state.pt" for path in found)
    assert not [path for path in found if secret.encode() in path.read_bytes()]
    assert secret not in "".join(capfd.readouterr())
