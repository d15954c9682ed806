"""What a run costs: counts against built models, a plan against trained runs, and how each number is known."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nfbook import cost
from nfbook.__main__ import grid, main
from nfbook.cost import Measurement, flops_per_token, parameters, plan, speed
from nfbook.presets import Preset
from nfbook.recorded import recorded_dir
from nfcore import memory, prepare, runs
from nfcore.model import NormFreeConfig, NormFreeForCausalLM
from nfcore.settings import ACTIVATION_LETTERS, NORM_LETTERS, SHAPES, Experiment, ModelSettings, SettingsError
from nfcore.training import Training, train
from tools.benchmarks import scaling, training


Tiny = Callable[..., Experiment]
QUICK = runs.read_records(recorded_dir("quick"))


CASES = [dict(SHAPES[shape], tie_word_embeddings=tied) for shape in SHAPES for tied in (True, False)]
SMALL = dict(vocab_size=300, intermediate_size=100, max_position_embeddings=50)
CASES += [
    dict(SHAPES[shape], **SMALL, norm=norm, final_norm=final, activation=activation, biases=biases, slope_sharing=share)
    for shape, norm, final, biases, share in (
        ("gpt2-2x32", "layernorm", "none", "all", "shared"),
        ("pythia-2x32", "rmsnorm", "layernorm", "none", "per_layer"),
        ("pythia-2x32", "none", "rmsnorm", "paper", "per_layer"),
    )
    for activation in ACTIVATION_LETTERS
]
assert {case.get("norm") for case in CASES} >= {*NORM_LETTERS}


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_those_of_the_model(case: dict[str, Any]) -> None:
    settings = ModelSettings(**case)
    with torch.device("meta"):
        model = NormFreeForCausalLM(NormFreeConfig(**vars(settings)))
    total, multiplied = parameters(settings)
    assert total == sum(p.numel() for p in model.parameters())
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    small = sum(p.numel() for p in model.parameters() if p.dim() < 2)  # biases, norms, learnable scalars
    small += sum(p.numel() for p in (*model.learned("slope"), *model.learned("scale")) if p.dim() >= 2)
    assert multiplied == matrices + small


def test_operations_of_gpt2() -> None:
    model = ModelSettings(biases="all")
    assert parameters(model) == (124_439_808, 124_439_808 - 1024 * 768)  # as Hugging Face's gpt2
    assert flops_per_token(model, 1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_memory_follows_the_settings() -> None:
    def of(**training: Any) -> float:
        return memory.estimate(Experiment.from_dict({"model": {"vocab_size": 1024}, "training": training}))

    small = of(batch_size=8)
    assert of(batch_size=32, micro_batch_size=8) == small
    assert of(batch_size=8, precision="bfloat16") < small
    assert of(batch_size=8, gradient_checkpointing=True) < small
    states = 16 * parameters(ModelSettings(vocab_size=1024))[0]
    assert of(batch_size=32) - states == pytest.approx(4 * (small - states))


RESULTS = json.loads((cost.project_root() / "tools" / "benchmarks" / "results" / "scaling.json").read_text())
SCALING = [row for row in RESULTS["rows"] if row["kind"] == "scaling"]


@pytest.mark.skipif("cores" not in RESULTS["provenance"]["device"], reason="measured on a GPU, as its allocator counts")
@pytest.mark.parametrize("row", SCALING, ids=lambda row: f"{row['over']} {row[row['over']]}")
def test_memory_is_what_was_measured(row: dict[str, Any]) -> None:
    """To a factor, which what is asked of a scheduler has to spare."""
    sizes = {name: row[name] for name in scaling.BASE}
    estimated = memory.estimate(scaling.plan(sizes, precision=row["precision"]))
    assert estimated / 1.2 < row["peak_bytes"] < cost.SPARE_MEMORY * estimated


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_run_takes_what_is_planned(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(training={"steps": 9, "save_every": 2}, seed=31)
    most = 0

    def watched(self: Training) -> None:
        nonlocal most
        save(self)
        most = max(most, size(runs.runs_dir() / experiment.id))

    save = Training.save
    monkeypatch.setattr(Training, "save", watched)
    directory = train(experiment, quiet=True)
    record = runs.read_record(directory)
    assert record is not None
    made = record["provenance"]
    (found,), corpora = plan([experiment], cost.this_device())
    planned = (found.parameters, found.tokens, found.steps)
    assert planned == (made["parameters"], made["tokens"], record["final"]["step"])
    assert corpora[experiment.data].train == made["unique_tokens"]
    assert corpora[experiment.data].source == "counted"
    assert 24 * found.parameters < most < found.storage  # two checkpoints of 12 bytes a parameter
    assert 4 * found.parameters < size(directory) < found.kept < 1.5 * size(directory)


def test_one_epoch_has_the_steps_of_the_corpus(tiny: Tiny) -> None:
    experiment = tiny(training={"steps": None, "eval_sequences": None})
    tokens = prepare(experiment.data)
    (found,), _ = plan([experiment], "H100")
    assert found.steps == len(tokens.train) // 8


def test_recorded_runs_took_the_time_that_the_benchmark_tells() -> None:
    assert {name: sizes[:2] for name, sizes in training.SHAPES.items()} == cost.BENCHMARKED
    device = cost.benchmarked()[0].device
    complete = [r for r in QUICK if not r["diverged"] and r["provenance"]["device"] == device]
    if not complete:
        pytest.skip(f"preset quick is not recorded on {device}")
    plans, _ = plan([Experiment.from_dict(r["settings"]) for r in complete], device, cost.benchmarked())
    for found, record in zip(plans, complete, strict=True):
        made = record["provenance"]
        assert (found.parameters, found.tokens) == (made["parameters"], made["tokens"])
        assert found.seconds is not None
        assert 0.6 < made["wall_seconds"] / found.seconds < cost.SPARE_TIME, record["name"]


@pytest.fixture
def quick() -> Experiment:
    return Preset.load("quick").experiments()[0]


def measurement(experiment: Experiment, device: str = "Some CPU, 8 cores", **changes: Any) -> Measurement:
    ways = frozenset({"auto", "bfloat16"})
    one = Measurement(experiment.model, experiment.data.context, device, ways, 1, 1000.0, "recorded runs")
    return replace(one, **changes)


def test_speed_is_measured_else_scaled_else_assumed_else_unknown(quick: Experiment) -> None:
    device, other = "Some CPU, 8 cores", Preset.load("paper").experiments()[0]
    same = [measurement(quick, rate=rate) for rate in (900.0, 1000.0, 5000.0)]
    benchmark = measurement(quick, rate=1.0, source="the benchmark")
    found = speed(quick, device, [*same, benchmark])
    assert found is not None
    assert (found.rate, found.basis) == (1000.0, "measured")

    far = quick.replace(model=quick.model.replace(hidden_size=256, intermediate_size=1024))
    scaled = speed(far, device, [measurement(other), *same[:1]])
    assert scaled is not None
    work = flops_per_token(quick.model, 128) / flops_per_token(far.model, 128)
    assert (scaled.rate, scaled.basis) == (pytest.approx(900 * work), "scaled")

    assumed = speed(quick, "NVIDIA A100-SXM4-80GB", same)
    assert assumed is not None
    assert assumed.basis == "assumed"
    assert assumed.rate == pytest.approx(0.2 * 312e12 / flops_per_token(quick.model, 128))
    assert speed(quick, "Another CPU, 8 cores", same) is None
    card = speed(quick, "h100", [measurement(quick, "NVIDIA H100 80GB HBM3")])
    assert (card and card.basis) == "measured", "names of one card are one device"
    assert speed(quick.replace(training=quick.training.replace(precision="float32")), "A100", same) is None


def test_speed_of_a_cpu_is_by_thread_and_way(quick: Experiment) -> None:
    def rate(measured: Measurement, **changes: Any) -> float | None:
        found = speed(quick.replace(training=quick.training.replace(**changes)), measured.device, [measured])
        return found and found.rate

    measured = measurement(quick, threads=2)
    assert [rate(measured, threads=threads) for threads in (1, 4, None)] == [500.0, 2000.0, 1000.0]
    assert rate(measurement(quick), precision="float32") is None
    assert rate(measurement(quick), compile=True) is None


def test_tokens_of_a_corpus_that_is_not_prepared() -> None:
    quick, paper = (Preset.load(name).experiments()[0].data for name in ("quick", "paper"))
    made = next(record for record in QUICK if record["settings"]["data"]["context"] == quick.context)
    assert cost.corpus(quick, QUICK).train == made["provenance"]["unique_tokens"]
    assert cost.corpus(paper, []).train == pytest.approx(2.11e9)
    assert cost.corpus(paper, []).validation == pytest.approx(2000 * 2.11e9 / 600_000)
    assert cost.corpus(quick, []).train is None
    local = paper.replace(train_files="a.parquet", validation_files="b.parquet")
    assert cost.corpus(local, []).train is None


@pytest.mark.parametrize("field", ["steps", "eval_sequences"])
def test_unknown_corpus_is_refused(field: str) -> None:
    whole = {"data": {"corpus": "somewhere"}, "training": {"steps": 5, field: None}}
    with pytest.raises(SettingsError, match=f"training.{field}: null is .* size is not known here"):
        plan([Experiment.from_dict(whole)], "H100")


@pytest.mark.parametrize("name", ["smoke", "paper", "study"])  # the study has lists among its settings
def test_plan_of_a_grid_has_a_line_a_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", name, "--hardware", "A100"]) == 0
    printed = capsys.readouterr().out
    for experiment in grid(name):
        assert printed.count(f"\n{experiment.id}  ") == 1
    assert "Tokens/s assumed: 20% of 312 TFLOP/s, the 16-bit peak in the data sheet of A100." in printed


def test_token_files_of_a_large_vocabulary_are_twice_as_large() -> None:
    sizes = []
    for vocab_size in (50000, 70000):
        data = {"corpus": "codeparrot", "max_documents": 600_000, "vocab_size": vocab_size}
        printed = cost.report([Experiment.from_dict({"data": data})], "A100")
        sizes += re.findall(r"2,110,000,000 tokens, ([\d,.]+ MB)", printed)
    assert sizes == ["4,220.0 MB", "8,440.0 MB"]


def test_plan_of_one_run_and_of_a_machine_without_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(Preset.load("quick").experiments()[0].to_dict()))
    monkeypatch.setattr("nfcore.machine.device_name", lambda: "Abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 run on Abacus\n")
    assert "Together unknown time" in printed
    assert "Tokens/s unknown: nothing is recorded of Abacus" in printed
    assert main(["plan", "big"]) == 2
    assert main(["plan", "quick", "--hardware", "H99"]) == 2
    assert "--hardware: 'H99' is not one of H200, H100" in capsys.readouterr().err
