"""The benchmarks run, at their least sizes; what they measure is not tested."""

import json
import math
from pathlib import Path

import pytest

from nfcore import machine
from tools.benchmarks.__main__ import SECTIONS, main
from tools.benchmarks.common import Target, _call, alternate, ratio, spread


def test_alternate_reverses_every_other_round_and_leaves_warm_up_out() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    samples = alternate({"a": lambda: side("a"), "b": lambda: side("b")}, repeats=2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert samples == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert ratio(samples, "a", "b")["samples"] == pytest.approx([4 / 3, 5 / 6], rel=1e-5)


def test_spread_and_targets() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "samples": [3.0, 1.0, 2.0]}
    assert Target("x", 2.0, 1.6, "x").met
    assert not Target("x", 2.0, 1.6, "x", at_least=False).met
    assert Target("x", None, 1.6, "x").met is None
    assert not Target("x", math.nan, 1.6, "x").met


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "SECTION: 'speed' is not one of training"),
        (["--nanogpt", "nowhere"], "--nanogpt: nowhere has no model.py"),
        (["--repeats", "0"], "at least 1"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("section", SECTIONS)
def test_section_at_its_least_size(
    section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    if section == "startup":
        small = "model: {shape: gpt2-2x32, init: width}\ndata: {corpus: CORPUS, vocab_size: 300, context: 32}\n"
        monkeypatch.setattr("tools.benchmarks.startup.RUN", small + "training: {eval_sequences: 8}\n")
    if section in ("training", "telemetry", "data"):  # many processes, whose starts would take longer than all the rest
        # To be as before a call set them
        monkeypatch.setenv("NFCORE_DATA", str(tmp_path))
        monkeypatch.setattr(machine, "keep_freed_memory", machine.keep_freed_memory)
        monkeypatch.setattr(f"tools.benchmarks.{section}.in_a_process", lambda function, *args: _call(function, args))
    assert main([section, "--small", "--repeats", "1", "--threads", "1", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = ("met", "MISSED", "measured", "beside")
    assert all(line.startswith(section) and line.split()[-1] in words for line in lines)
    content = json.loads((tmp_path / f"{section}.json").read_text())
    assert content["provenance"]["repeats"] == 1
    assert content["rows"]
