"""The companion's commands: grids listed and recorded, notebooks executed, the book built through Snakemake."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from nfbook.__main__ import main
from nfbook.presets import Preset
from nfcore import runs
from nfcore.settings import Experiment, read_yaml
from tests import test_cli
from tests.test_cli import Capture


refused = partial(test_cli.refused, main=main)


def test_list_writes_settings_that_make_the_same_runs(tmp_path: Path, capsys: Capture) -> None:
    assert main(["list", "smoke", "--write", str(tmp_path)]) == 0
    experiments = Preset.load("smoke").experiments()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [e.id for e in experiments]
    for e in experiments:
        assert Experiment.from_dict(read_yaml(str(tmp_path / f"{e.id}.yaml"))) == e


@pytest.mark.parametrize("command", ["list", "record", "plan"])
def test_wrong_grid(command: str, capsys: Capture) -> None:
    assert "grid: 'big' is not one of smoke, quick, gpu, paper, study, transient" in refused(capsys, command, "big")


def test_list_says_how_each_run_stands(smoke_grid: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in ("complete", "not run"):
        assert main(["list", "smoke"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == [e.id for e in Preset.load("smoke").experiments()]
        assert sum(state in line for line in lines) > len(lines) / 2
        monkeypatch.setenv("NFCORE_RUNS", str(smoke_grid / "none"))


def test_notebook(tmp_path: Path, capsys: Capture) -> None:
    script, output = tmp_path / "small.py", tmp_path / "out.ipynb"
    assert "no such notebook script" in refused(capsys, "notebook", script, output)
    script.write_text('# %% tags=["parameters"]\npreset = "quick"\n\n# %%\nprint(preset)\n')
    assert "unknown setting 'stpes'" in refused(capsys, "notebook", script, output, "stpes=3")
    assert not output.exists()
    assert main(["notebook", str(script), str(output), "preset=smoke"]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert '"smoke\\n"' in output.read_text()
    script.write_text("# %%\n1 / 0\n")
    assert main(["notebook", str(script), str(output)]) == 1
    assert re.fullmatch(r"nfcore: .*: cell \d: ZeroDivisionError: [^\n]+\n", capsys.readouterr().err)


@pytest.fixture
def project(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NFCORE_ROOT", str(checkout))
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "runs"))
    return checkout


def test_dry_run_says_what_it_would_do_beside_nobody_and_after_a_stale_lock(project: Path, capfd: Capture) -> None:
    """Stale is what a process leaves that was killed: files in ``.snakemake/locks`` that nobody holds."""
    locks = project / ".snakemake" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project / ".snakemake" / "nfcore.lock"):
        assert "another Snakemake is at work here" in refused(capfd, "build", "smoke", "--dry-run")
    (locks / "0.input.lock").write_text("_config.yml\n")
    (locks / "0.output.lock").write_text("_build/smoke/html/index.html\n")
    assert main(["build", "smoke", "--dry-run", "--cores", "1"]) == 0
    assert not list(locks.glob("*"))
    printed = "".join(capfd.readouterr())
    assert re.search(r"^run +29$", printed, re.MULTILINE), printed
    assert re.search(rf"^notebook +{len(list((project / 'notebooks').glob('*.py')))}$", printed, re.MULTILINE), printed
    # What `git status` of the copy shows beside the files it began with
    command = ["git", "status", "--porcelain"]
    lines = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.splitlines()
    assert not [line for line in lines if not line.startswith("A  ")]
    assert not runs.runs_dir().exists()


def test_commands_need_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("NFCORE_ROOT", str(tmp_path))
    for command in (["build", "smoke"], ["list", "quick"], ["claims"], ["study"]):
        assert f"{tmp_path}: no checkout of the project" in refused(capsys, *command)


@pytest.fixture
def small_book(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose book has two notebooks, neither of which needs a run, in a path with a space."""
    root = tmp_path / "a checkout"
    shutil.copytree(checkout, root, ignore=shutil.ignore_patterns("recorded", "_build", ".snakemake", ".git"))
    for page in [*(root / "notebooks").glob("*.py"), *(root / "book").glob("**/*.md"), *root.glob("**/*.ipynb")]:
        page.unlink()
    (root / "book" / "index.md").write_text("# A small book\n")
    chapters = "- file: notebooks/faults\n- file: notebooks/speed\n"
    (root / "book" / "_toc.yml").write_text(f"format: jb-book\nroot: index\nchapters:\n{chapters}")
    for name, code in (("speed", "print('quick')"), ("faults", "1 / 0")):
        head = f'# %% [markdown]\n# # {name}\n\n# %% tags=["parameters"]\npreset = ""\nsource = ""\n\n'
        (root / "notebooks" / f"{name}.py").write_text(f"{head}# %%\n{code}\n")
    monkeypatch.setenv("NFCORE_ROOT", str(root))
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path / "runs"))
    return root


def test_a_book_says_which_notebook_failed(small_book: Path, capfd: Capture) -> None:
    build = small_book / "_build" / "smoke"
    assert main(["build", "smoke", "--strict"]) == 1
    assert not (build / "html").exists()
    assert main(["build", "smoke"]) == 1
    printed = capfd.readouterr()
    assert "ZeroDivisionError" in printed.err
    assert "nfbook: faults: failed, and the book says so" in printed.err
    assert "open " in printed.out
    page = (build / "html" / "notebooks" / "faults.html").read_text()
    assert "faults: missing" in page
    assert "faults.failed.ipynb" in page
    assert (build / "notebooks" / "faults.failed.ipynb").exists()
    assert "quick" in (build / "html" / "notebooks" / "speed.html").read_text()
    script = small_book / "notebooks" / "faults.py"
    script.write_text(script.read_text().replace("1 / 0", "print('repaired')"))
    assert main(["build", "smoke", "--strict"]) == 0
    assert "repaired" in (build / "html" / "notebooks" / "faults.html").read_text()
    assert not (build / "notebooks" / "faults.failed.ipynb").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_book_that_is_stopped_leaves_no_process_behind(number: signal.Signals, small_book: Path) -> None:
    started = small_book / "started"
    script = small_book / "notebooks" / "faults.py"
    endless = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)"
    script.write_text(script.read_text().replace("1 / 0", endless))
    command = [sys.executable, "-m", "nfbook", "build", "smoke"]
    # A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    piped = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen)
    book = subprocess.Popen(command, cwd=small_book, **piped)
    try:
        while not started.exists():
            assert book.poll() is None, book.communicate()[1]
            time.sleep(0.1)
        below = psutil.Process(book.pid).children(recursive=True)
        # A terminal tells the whole group.
        os.killpg(book.pid, number) if number == signal.SIGINT else book.send_signal(number)
        _, said = book.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):  # else a test that fails would wait for it
            os.killpg(book.pid, signal.SIGKILL)
    assert book.returncode == 128 + number
    assert "interrupted; the same command goes on" in said
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive
