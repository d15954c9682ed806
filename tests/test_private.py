"""Private inference: settings are refused, a lost party ends the other, the JAX decoder is the torch one, and what is
recorded adds up. Tests of the engine itself run in its own environment, and are skipped without it."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nfcore import NormFreeConfig, NormFreeForCausalLM
from nfcore.settings import ModelSettings, project_root
from tools.benchmarks.private import install
from tools.benchmarks.private.engine import Settings


ROOT = project_root()
RECORDED = ROOT / "data" / "recorded" / "private"
PYTHON = Path(os.environ.get("NFCORE_PRIVATE", ROOT / "_build" / "private" / "bin" / "python"))
engine = pytest.mark.skipif(not PYTHON.exists(), reason="SPU is not installed; `make private` makes its environment")


def in_engine(code: str, *arguments: object) -> str:
    """What a script prints that runs in the engine's environment."""
    command = [str(PYTHON), "-c", f"from tools.benchmarks.private.engine import *\n{code}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def recorded(name: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"{name}.json").read_text())


def private(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command in the engine's environment."""
    command = [str(PYTHON), "-m", "tools.benchmarks.private", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(protocol="ABY3"), "protocol: 'ABY3' is not one of SEMI2K, CHEETAH"),
        (dict(field="FM16"), "field: 'FM16' is not one of FM32, FM64, FM128"),
        (dict(fraction_bits=32), "fraction_bits: 32 must be between 1 and 31 in FM64"),
        (dict(timeout=0), "timeout: 0 must be above 0 seconds"),
        (dict(ports=(5000, 5000)), r"ports: \(5000, 5000\) must be two different ports"),
        (dict(ports=(80, 5000)), r"ports: \(80, 5000\) must be .* between 1024 and 65535"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        free.bind(("127.0.0.1", 0))
        ports = free.getsockname()[1], taken.getsockname()[1]
        free.close()
        with pytest.raises(ValueError, match=f"ports: {ports[1]} on 127.0.0.1 is not free"):
            Settings(ports=ports)


def test_a_machine_that_cannot_have_the_engine_is_told_so() -> None:
    for machine, words in {
        ((3, 12, 1), "Linux", "x86_64"): "SPU needs Python 3.10 or 3.11, found 3.12; PRIVATE_PYTHON=",
        ((3, 11, 7), "Darwin", "arm64"): "SPU needs Linux x86_64, found Darwin arm64",
    }.items():
        assert (install.refusal(*machine) or "").startswith(words)
        assert (install.refusal(*machine) or "").endswith("the book shows data/recorded/private instead")
    assert install.refusal((3, 10, 0), "Linux", "x86_64") is None
    assert install.VENV == ROOT / "_build" / "private", "where make looks for it"


LOST = """
import os, signal, sys, threading, time
from tools.benchmarks.private.operations import gelu, inputs, relu
parties = Parties(Settings(timeout=float(sys.argv[2])))
number = getattr(signal, sys.argv[1])
threading.Timer(1.0, os.kill, (parties.processes[1].pid, number)).start()
start = time.monotonic()
try:
    while True:
        parties.run(gelu, inputs("gelu", (128, 256)))
except EngineError as error:
    print(error)
print(time.monotonic() - start < 60, [process.is_alive() for process in parties.processes])
"""


@engine
@pytest.mark.parametrize(
    ("signal", "timeout", "words"),
    [
        ("SIGKILL", 300, "SEMI2K: party 1 ended with exit code -9"),
        ("SIGSTOP", 5, "SEMI2K: no answer from party"),
    ],
)
def test_a_lost_party_ends_with_a_message(signal: str, timeout: float, words: str) -> None:
    message, state = in_engine(LOST, signal, timeout).splitlines()
    assert message.startswith(words)
    assert message.endswith("both parties are stopped")
    assert state == "True [False, False]"


@engine
def test_parties_with_different_programs_refuse_to_compute() -> None:
    code = """
from tools.benchmarks.private.operations import gelu, inputs, relu
with Parties(Settings()) as parties:
    try:
        parties.ask([relu, gelu], inputs("relu", (2, 8)))
    except EngineError as error:
        print(error)
"""
    assert "the two parties were given different programs" in in_engine(code)


@engine
def test_bytes_follow_from_the_size_and_the_ring() -> None:
    code = """
from tools.benchmarks.private.operations import inputs, product, relu
with Parties(Settings()) as parties:
    for rows in (8, 16):
        result = parties.run(relu, inputs("relu", (rows, 32)))
        print(result.bytes, float(np.abs(result.value - relu(**inputs("relu", (rows, 32)))).max()))
    print(parties.run(product, inputs("product", (8, 32, 16))).bytes)
"""
    first, second, product = in_engine(code).splitlines()
    (bytes_of_8, error), (bytes_of_16, _) = (map(float, line.split()) for line in (first, second))
    assert bytes_of_16 == 2 * bytes_of_8
    assert error < 2**-16
    # Both factors are opened by both parties, and the product is cut to its digits: 8 bytes a number.
    assert int(product) == 16 * (8 * 32 + 32 * 16) + 8 * 8 * 16


SHAPES = {
    "gpt2, LayerNorm, GELU": dict(family="gpt2", norm="layernorm", activation="gelu"),
    "gpt2, no norm, scaled GELU, all biases": dict(
        family="gpt2", norm="none", activation="scaled_gelu", activation_scale=16.0, biases="all"
    ),
    "pythia, RMSNorm, leaky ReLU": dict(family="pythia", norm="rmsnorm", activation="leaky_relu", negative_slope=0.1),
    "pythia, no norm, tanh GELU, no biases": dict(family="pythia", norm="none", activation="gelu_tanh", biases="none"),
}
PARITY = """
import json, sys
from tools.benchmarks.private import models
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model, record, _ = models.read(folder)
    given = model.inputs(np.load(folder / "tokens.npy"))
    plain = np.asarray(model.program(**given))
    wanted = np.load(folder / "logits.npy")
    print(json.dumps([folder.name, float(np.abs(plain - wanted).max()), float(np.abs(wanted).max())]))
"""


@engine
def test_decoder_in_jax_is_the_one_in_torch(tmp_path: Path) -> None:
    for name, changes in SHAPES.items():
        sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        config = NormFreeConfig(**sizes, max_position_embeddings=24, **changes)
        model = NormFreeForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # no weight is the one that it starts as
            tokens = torch.randint(50, (1, 16))
            logits = model(tokens).logits[0]
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        save_file(state, folder / "model" / "model.safetensors")
        settings = {key: getattr(config, key) for key in ModelSettings.model_fields}
        (folder / "record.json").write_text(json.dumps({"settings": {"model": settings}}))
        np.save(folder / "tokens.npy", tokens[0].numpy())
        np.save(folder / "logits.npy", logits.numpy())
    rows = [json.loads(line) for line in in_engine(PARITY, tmp_path).splitlines()]
    assert {name for name, _, _ in rows} == set(SHAPES)
    for name, difference, largest in rows:
        assert difference < 1e-5 * max(1.0, largest), name


@engine
def test_a_trained_model_answers_privately_as_it_does_in_the_open(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text((ROOT / "nfcore" / "entropy.py").read_text())
    done = private("models", "--run", trained, "--text", text, "--results", tmp_path, "--context", 16)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "models.json").read_text())["rows"]
    (row,) = [row for row in rows if row["run"] == trained.name]
    assert row["largest_error"] < 0.01
    assert row["same_next_token"] == row["context"] == 16


@engine
def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    done = private("models", "--run", tmp_path, "--results", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}: not a finished run of nfcore" in done.stderr
    assert "Traceback" not in done.stderr


@engine
def test_recorded_costs_follow_from_the_recorded_operations(tmp_path: Path) -> None:
    shutil.copy(RECORDED / "operations.json", tmp_path)
    private("costs", "--results", tmp_path).check_returncode()
    assert json.loads((tmp_path / "costs.json").read_text()) == recorded("costs")


def test_the_sum_of_operations_is_what_a_whole_model_sends() -> None:
    sums = {(r["protocol"], r["model"], r["context"], r["configuration"]): r for r in recorded("costs")["rows"]}
    measured = recorded("models")["rows"]
    assert len(measured) >= 6
    for row in measured:
        whole = sums[row["protocol"], row["model"], row["context"], row["configuration"]]
        assert (row["bytes"], row["messages"]) == (whole["bytes"], whole["messages"]), row["configuration"]
        if row["run"]:  # fixed-point numbers swap tokens whose logits lie close together
            assert row["same_next_token"] >= 0.95 * row["context"], row["configuration"]
            assert row["largest_error"] < 0.02 * row["largest_logit"], row["configuration"]


def test_counts_agree_with_the_kernel() -> None:
    """Headers and acknowledgements come on top; a small operation is mostly those."""
    rows = [row for row in recorded("operations")["rows"] if row["protocol"] == "SEMI2K" and row["kernel_bytes"]]
    rows = [row for row in rows if row["bytes"] > 2**23]
    assert len(rows) > 10
    for row in rows:
        assert 1 <= row["kernel_bytes"] / row["bytes"] < 1.03, (row["operation"], row["shape"])


def test_every_operation_is_recorded_at_several_sizes() -> None:
    rows = recorded("operations")["rows"]
    for protocol in ("SEMI2K", "CHEETAH"):
        sizes: dict[str, list[int]] = {}
        for row in rows:
            if row["protocol"] == protocol and row["bytes"]:
                sizes.setdefault(row["operation"], []).append(row["bytes"])
        assert sizes.pop("set-up")
        assert len(sizes) == 18, protocol
        assert all(len(found) >= 2 for found in sizes.values()), protocol
