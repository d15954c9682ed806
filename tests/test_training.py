"""Training: the optimiser and its schedule, what a run leaves behind, resuming, and divergence as a result."""

import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments, get_polynomial_decay_schedule_with_warmup

from nfcore import (
    NormFreeConfig,
    NormFreeForCausalLM,
    checkpoints,
    entropy_ceiling,
    head_entropy,
    machine,
    prepare,
    runs,
    train,
    training,
)
from nfcore.model import ACTIVATIONS, recomputes_activations
from nfcore.optimizer import HFAdamW, optimizer_and_schedule
from nfcore.settings import Experiment, SettingsError, TrainingSettings
from nfcore.telemetry import Telemetry, Watch
from nfcore.training import Training
from nfcore.units import unit_statistics


Tiny = Callable[..., Experiment]
VOCAB = 50


def network(**changes: Any) -> NormFreeForCausalLM:
    return NormFreeForCausalLM(NormFreeConfig.from_shape("gpt2-2x32", vocab_size=VOCAB, norm="none", **changes))


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / f"{name}.parquet")


def metric(run: Path, name: str) -> pd.Series:
    """A metric by step; a step that was logged twice fails."""
    rows = table(run, "metrics").query("name == @name").set_index("step")["value"]
    assert rows.index.is_unique
    return rows


def record(run: Path) -> dict[str, Any]:
    found = runs.read_record(run)
    assert found is not None
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def load_model(run: Path) -> NormFreeForCausalLM:
    return NormFreeForCausalLM.from_pretrained(run / "model")


def assert_same_run(first: Path, second: Path) -> None:
    """Equal to the last bit in all tables and weights."""
    for name in runs.TABLES:
        pd.testing.assert_frame_equal(table(first, name), table(second, name), check_exact=True)
    assert (first / "model/model.safetensors").read_bytes() == (second / "model/model.safetensors").read_bytes()


def probe_and_validation(experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(prepare(experiment.data).validation.astype(np.int64))
    return rows[: experiment.training.probe_sequences], rows[: experiment.training.eval_sequences]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory for runs."""
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    return tmp_path


# --- optimiser and schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "fraction"), [(20, 0.25), (7, 0.0), (1, 0.05), (10, 1.0)])
def test_learning_rate_rises_linearly_then_falls_linearly(steps, fraction):
    settings = TrainingSettings(learning_rate=0.01, final_learning_rate=1e-4, warmup_fraction=fraction)
    optimizer, schedule = optimizer_and_schedule(network(), settings, steps)
    warmup = round(fraction * steps)
    for step in range(steps + 1):
        left = (steps - step) / max(1, steps - warmup)
        expected = 0.01 * (step + 1) / warmup if step < warmup else 1e-4 + (0.01 - 1e-4) * left
        assert schedule.get_last_lr() == [pytest.approx(expected, rel=1e-12)] * len(optimizer.param_groups)
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(1e-4)


@pytest.mark.parametrize(("steps", "fraction"), [(20, 0.25), (50, 0.05), (7, 0.0)])
@pytest.mark.parametrize("final", [1e-4, 0.0])
def test_the_papers_schedule_is_that_of_transformers(steps, fraction, final):
    """Hugging Face's own functions, with the number of warm-up updates that TrainingArguments gives them."""
    settings = TrainingSettings(
        learning_rate=0.01, final_learning_rate=final, warmup_fraction=fraction, schedule="hf_linear"
    )
    optimizer, schedule = optimizer_and_schedule(network(), settings, steps)
    theirs = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.01)
    warmup = TrainingArguments(warmup_steps=fraction).get_warmup_steps(steps)
    expected = get_polynomial_decay_schedule_with_warmup(theirs, warmup, steps, lr_end=final)
    for _ in range(steps + 1):
        assert schedule.get_last_lr() == [pytest.approx(expected.get_last_lr()[0], rel=1e-12)] * 2
        for each in (optimizer, theirs, schedule, expected):
            each.step()
    assert schedule.get_last_lr()[0] == pytest.approx(final)


@pytest.mark.parametrize(
    ("family", "activation", "sharing", "slopes"),
    [
        ("gpt2", "learnable_leaky_relu", "per_layer", 2),
        ("pythia", "learnable_leaky_relu", "shared", 1),
        ("gpt2", "learnable_scaled_gelu", "per_layer", 0),
    ],
)
def test_decay_is_on_matrices_and_slopes_have_their_own(family, activation, sharing, slopes):
    changes = dict(norm="layernorm", biases="all", activation=activation, slope_sharing=sharing)
    model = NormFreeForCausalLM(NormFreeConfig.from_shape(f"{family}-2x32", vocab_size=VOCAB, **changes))
    settings = TrainingSettings(weight_decay=0.1, slope_weight_decay=0.03, beta1=0.8, beta2=0.99, epsilon=1e-7)
    optimizer, _ = optimizer_and_schedule(model, settings, 10)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay), "a parameter is in two groups"
    assert decay.keys() == {id(p) for p in model.parameters()}
    for name, p in model.named_parameters():
        plain = name.endswith(("bias", "scale")) or "norm" in name
        assert decay[id(p)] == (0.03 if name.endswith("slope") else 0.0 if plain else 0.1), name
    assert list(decay.values()).count(0.03) == slopes
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.99), 1e-7)


def test_the_setting_chooses_the_optimiser_with_the_same_groups():
    model, settings = network(), TrainingSettings(beta1=0.8, beta2=0.99, epsilon=1e-7)
    ours, _ = optimizer_and_schedule(model, settings.replace(optimizer="hf_adamw"), 10)
    torchs, _ = optimizer_and_schedule(model, settings, 10)
    assert (type(ours), type(torchs)) == (HFAdamW, torch.optim.AdamW)
    for group, expected in zip(ours.param_groups, torchs.param_groups, strict=True):
        assert list(map(id, group["params"])) == list(map(id, expected["params"]))
        assert all(group[name] == expected[name] for name in ("lr", "betas", "eps", "weight_decay"))


def test_the_first_ffn_matrices_have_a_rate_of_their_own_and_the_second_its_inverse():
    model = network()
    optimizer, schedule = optimizer_and_schedule(model, TrainingSettings(learning_rate=0.01, ffn_rate=4.0), 10)
    plain, _ = optimizer_and_schedule(model, TrainingSettings(learning_rate=0.01), 10)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            factor = {"ffn.up": 4, "ffn.down": 1 / 4}.get(".".join(names[id(p)].split(".")[2:4]), 1)
            assert group["initial_lr"] == pytest.approx(0.01 * factor), names[id(p)]
            assert group["initial_lr"] * group["weight_decay"] == pytest.approx(0.001 if p.dim() > 1 else 0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert schedule.get_last_lr()[0] == plain.param_groups[0]["lr"]  # what is logged


def test_gains_and_rates_of_the_ffn_matrices_train_like_the_scaled_activation(tiny):
    """W1' = s W1 and W2' = W2 / s: under Adam the rates take the same factors. Gradients do not, so nothing is cut."""
    same = {"epsilon": 1e-20, "max_grad_norm": 1e9, "learning_rate": 1e-2}
    gains = {"activation": "gelu", "ffn_gain": 4.0, "ffn_output_gain": 0.25}
    scaled = train(tiny(model={"activation": "scaled_gelu", "activation_scale": 4.0}, training=same), quiet=True)
    both = train(tiny(model=gains, training={**same, "ffn_rate": 4.0}), quiet=True)
    alone = train(tiny(model=gains, training=same), quiet=True)
    np.testing.assert_allclose(metric(both, "train_loss"), metric(scaled, "train_loss"), rtol=1e-5)
    assert abs(metric(alone, "eval_loss") - metric(scaled, "eval_loss")).max() > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_entropy_penalty_is_that_of_the_measured_entropies_and_lowers_them(tiny, precision):
    model, penalty = {"qk_norm": True}, {"entropy_penalty": 1000.0, "entropy_target": 0.3}
    experiment = tiny(model=model, training={"precision": precision, **penalty})
    plain = tiny(model=model, training={"precision": precision})
    means = [table(train(e, quiet=True), "heads").query("step == 10")["entropy"].mean() for e in (plain, experiment)]
    assert means[1] < 0.98 * means[0], means

    made = Training(experiment, prepare(experiment.data), Path("none"))
    ids, _ = probe_and_validation(experiment)
    with torch.no_grad(), made.accelerator.autocast():
        found = float(made.entropy_excess(made.model(ids, output_attentions=True).attentions))
    shares = [head_entropy(made.model, row[None]) / entropy_ceiling(32) for row in ids]
    assert found == pytest.approx(1000 * float((torch.stack(shares) - 0.3).relu().square().mean()), rel=1e-2)


# --- equal runs -------------------------------------------------------------------------------------------------


def test_accumulation_equals_the_full_batch(tiny):
    # A larger epsilon keeps AdamW from turning the rounding of a gradient that is nearly zero into a whole step.
    full, parts = (train(tiny(training={"micro_batch_size": size, "epsilon": 1e-4}), quiet=True) for size in (8, 2))
    for name in ("train_loss", "eval_loss", "grad_norm"):
        np.testing.assert_allclose(metric(full, name), metric(parts, name), rtol=1e-6)
    for name, expected in weights(full).items():
        torch.testing.assert_close(weights(parts)[name], expected, rtol=0, atol=1e-6)


def at_step(step: int, action: Callable[[], Any], patch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Do something when ``step`` updates are done and the next begins."""
    update = Training.update

    def acting(self: Training) -> Any:
        for _ in range(times * (self.step == step)):
            action()
        return update(self)

    patch.setattr(Training, "update", acting)


def test_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch, capsys):
    """With the paper's optimiser and few logs; test_faults.py has the defaults."""
    experiment = tiny(training={"optimizer": "hf_adamw", "schedule": "hf_linear", "log_every": 3})
    whole = train(experiment, quiet=True)
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    with monkeypatch.context() as patch:
        at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT), patch, times=2)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, quiet=True)
    run = tmp_path / experiment.id
    assert runs.read_record(run) is None
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-4"]

    # What a process that was killed while it saved step 8 leaves behind: nothing to resume from.
    shutil.copytree(run / "checkpoints/checkpoint-4", run / "checkpoints/checkpoint-8")
    (run / "checkpoints/checkpoint-8" / checkpoints.MANIFEST).unlink()
    assert train(experiment) == run
    assert "resumes at step 4" in capsys.readouterr().out
    assert_same_run(run, whole)
    assert not (run / "checkpoints").exists()


def batches(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Every batch that a run of this experiment reads, (steps, B, T)."""
    seen: list[torch.Tensor] = []
    update = Training.update

    def spy(self: Training) -> Any:
        seen.append(training.as_ids(self.batch()))
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", spy)
        train(experiment, quiet=True)
    return torch.stack(seen)


def test_one_seed_gives_the_same_batches_and_another_other_ones_and_other_weights(tiny, trained, monkeypatch):
    first = batches(tiny(training={"steps": 3}), monkeypatch)
    other = dict(shape="pythia-2x32", norm="layernorm", activation="learnable_leaky_relu", embd_pdrop=0.1)
    assert torch.equal(first, batches(tiny(model=other, training={"steps": 3}), monkeypatch))
    seed = tiny(training={"steps": 3}, seed=1)
    assert not torch.equal(first, batches(seed, monkeypatch))
    assert metric(runs.runs_dir() / seed.id, "eval_loss")[0] != metric(trained, "eval_loss")[0]


# --- finished runs ----------------------------------------------------------------------------------------------


def test_finished_run_is_reused_and_says_so(tiny, trained, monkeypatch, capsys):
    before = (trained / "record.json").stat().st_mtime_ns
    monkeypatch.setattr(training, "_run", lambda *args: pytest.fail("trained again"))
    assert train(tiny().to_dict()) == trained
    assert "reused" in capsys.readouterr().out
    train(tiny(), quiet=True)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(runs, "MEASUREMENT_VERSION", 99)
    train(tiny(), quiet=True)
    message = capsys.readouterr().err
    assert "made with measurement 2, now 99 (fresh=true retrains)" in message
    assert (trained / "record.json").stat().st_mtime_ns == before


def test_tampered_run_is_refused_and_fresh_trains_the_same_again(tiny, trained, elsewhere):
    run = Path(shutil.copytree(trained, elsewhere / trained.name))
    (run / "metrics.parquet").write_bytes(b"tampered")
    with pytest.raises(SettingsError, match=r"metrics\.parquet: does not match its recorded hash.*fresh=true"):
        train(tiny(), quiet=True)
    train(tiny(), fresh=True, quiet=True)
    assert_same_run(run, trained)


def test_record_says_what_was_run(tiny, trained):
    found = record(trained)
    assert (found["id"], found["status"], found["diverged"]) == (tiny().id, "complete", None)
    assert Experiment.from_dict(found["settings"]) == tiny()
    facts = found["provenance"]
    assert facts["tokens"] == 10 * 8 * 32
    assert facts["parameters"] == sum(p.numel() for p in load_model(trained).parameters())
    assert facts["measurement"] == runs.MEASUREMENT_VERSION
    counts = torch.bincount(torch.tensor(prepare(tiny().data).train.reshape(-1).astype(int)), minlength=300) + 1
    targets = torch.tensor(prepare(tiny().data).validation[:20, 1:].astype(int)).reshape(-1)
    unigram = torch.nn.functional.cross_entropy(counts.double().log().expand(len(targets), -1), targets)
    assert facts["unigram_loss"] == pytest.approx(float(unigram), abs=1e-6)
    assert facts["data_hash"] == prepare(tiny().data).hash
    assert facts["torch"] == torch.__version__
    assert facts["seconds"] > 0
    assert facts["tokens"] / facts["tokens_per_second"] == pytest.approx(facts["seconds"], abs=0.006)  # rounded
    assert not any(str(Path.home()) in str(value) for value in facts.values())
    left = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert left - {".lock"} == {*found["files"], "record.json"}


# --- measurements -----------------------------------------------------------------------------------------------


def test_steps_of_measurements(trained):
    for name in ("eval_loss", "eval_loss_median", "eval_loss_p95"):
        assert metric(trained, name).index.tolist() == [0, 4, 8, 10]
    for name in ("train_loss", "grad_norm", "learning_rate"):
        assert metric(trained, name).index.tolist() == list(range(1, 11))
    rates = [1e-3, 2e-3, *(1e-7 + (2e-3 - 1e-7) * (10 - step) / 8 for step in range(2, 10))]
    assert metric(trained, "learning_rate").tolist() == pytest.approx(rates)
    layers, heads = table(trained, "layers"), table(trained, "heads")
    probes = [0, 3, 6, 9, 10]
    assert layers[["step", "layer"]].to_numpy().tolist() == [[s, i] for s in probes for i in range(2)]
    assert heads[["step", "layer", "head"]].to_numpy().tolist() == [
        [s, i, h] for s in probes for i in range(2) for h in range(2)
    ]
    assert layers[["slope", "scale"]].isna().all(axis=None)
    assert (heads["nonfinite_rows"] == 0).all()


def test_evaluation_is_over_tokens(tiny, trained):
    _, ids = probe_and_validation(tiny())
    with torch.no_grad():
        scores = load_model(trained)(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    losses = -scores.gather(-1, ids[:, 1:, None]).flatten().numpy()
    final = record(trained)["final"]
    assert len(losses) == 20 * 31
    assert final["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert final["eval_loss_median"] == pytest.approx(np.median(losses), abs=1e-5)
    assert final["eval_loss_p95"] == pytest.approx(np.quantile(losses, 0.95), abs=1e-5)
    assert final["perplexity"] == pytest.approx(np.exp(final["eval_loss"]), rel=1e-12)
    assert final["step"] == 10
    curve = metric(trained, "eval_loss")
    assert (final["best_step"], final["best_eval_loss"]) == (curve.idxmin(), curve.min())
    assert final["eval_loss"] == curve[10]


def test_train_loss_is_that_of_the_batch_before_the_update(tiny, monkeypatch):
    experiment = tiny(training={"steps": 2})
    read = batches(experiment, monkeypatch)
    torch.manual_seed(experiment.seed)
    initial = NormFreeForCausalLM(NormFreeConfig(**vars(experiment.model)))
    logged = metric(runs.runs_dir() / experiment.id, "train_loss")
    expected = F.cross_entropy(initial(read[0]).logits[:, :-1].flatten(0, 1), read[0][:, 1:].flatten()).detach()
    assert logged[1] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("family", "activation", "sharing"),
    [
        ("gpt2", "learnable_leaky_relu", "per_layer"),
        ("pythia", "learnable_leaky_relu", "shared"),
        ("gpt2", "learnable_input_gelu", "per_layer"),
    ],
)
def test_telemetry_equals_direct_calculation(tiny, family, activation, sharing):
    model = dict(shape=f"{family}-2x32", activation=activation, slope_sharing=sharing, negative_slope=0.25)
    model |= dict(activation_scale=4, embedding_gain=30.0)  # so that heads attend to something
    experiment = tiny(model=model, training=dict(steps=4, probe_every=1, eval_every=2))
    run = train(experiment, quiet=True)
    loaded, (probe, _) = load_model(run), probe_and_validation(experiment)
    layers, heads, positions = (table(run, name) for name in ("layers", "heads", "positions"))

    around: list[tuple[torch.Tensor, torch.Tensor]] = []  # each layer's activation
    residual: list[torch.Tensor] = []
    for block in loaded.blocks:
        block.register_forward_hook(lambda m, a, out: residual.append(out[0].double()))
    for module in loaded.activations:
        module.register_forward_hook(lambda m, a, out: around.append((a[0].double(), out.double())))
    loaded.set_attn_implementation("eager")
    with torch.no_grad():
        found = loaded(input_ids=probe, output_attentions=True).attentions
    entropies = torch.special.entr(torch.stack(found).double()).sum(-1)  # (L, B, H, T)
    for i, (x, y) in enumerate(around):
        row = layers.query("step == 4 and layer == @i").iloc[0]
        x, y = x.flatten(0, 1), y.flatten(0, 1)
        expected = dict(residual_rms=float(residual[i].square().mean() ** 0.5), preactivation_std=float(x.std()))
        assert row[[*expected]].to_dict() == pytest.approx(expected, rel=1e-5)
        for name, u, v in (("", x, y), ("_centred", x - x.mean(0), y - y.mean(0))):
            left = v - u * (u * v).sum(0) / (u * u).sum(0)
            share = float(left.square().sum() / y.square().sum())
            assert row[f"nonlinear_share{name}"] == pytest.approx(share, rel=1e-4)
        units = unit_statistics(x, y, probe.flatten())
        assert row[[*units]].to_dict() == pytest.approx(units, rel=1e-3, abs=1e-5)
    assert len(around) == 2
    measured = layers.groupby("step")["participation_out"].count()  # spectra where there is an evaluation too
    assert measured.to_dict() == {0: 2, 1: 0, 2: 2, 3: 0, 4: 2}

    own, none, start = ("slope", "scale", 0.25) if "leaky" in activation else ("scale", "slope", 4.0)
    learned = [p.item() for p in loaded.learned(own)] * (2 if sharing == "shared" else 1)
    assert layers.query("step == 4")[own].tolist() == pytest.approx(learned)
    assert start not in learned
    assert (layers.query("step == 0")[own] == start).all()
    assert layers[none].isna().all()

    last = heads.query("step == 4")
    np.testing.assert_allclose(last["entropy"].to_numpy().reshape(2, 2), entropies.mean((1, 3)), atol=1e-5)
    assert positions["step"].unique().tolist() == [4]
    assert positions.groupby("layer")["position"].apply(list).tolist() == [[*range(1, 33)]] * 2
    np.testing.assert_allclose(positions["entropy"].to_numpy().reshape(2, 32), entropies.mean((1, 2)), atol=1e-5)
    # The mean over positions is the mean over heads, on text and on random tokens.
    means = [t.groupby("layer")[["entropy", "entropy_random"]].mean() for t in (last, positions)]
    pd.testing.assert_frame_equal(*means, rtol=1e-5)
    assert (means[0]["entropy_random"] - means[0]["entropy"]).abs().min() > 1e-4


class SlopePerUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.initial = 0.5
        self.slope = nn.Parameter(torch.linspace(0, 1, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self.slope * x)


def test_activations_of_a_users_own_are_measured(monkeypatch):
    probe = torch.randint(VOCAB, (2, 8))

    def measured() -> pd.DataFrame:
        torch.manual_seed(0)
        telemetry = Telemetry(network(activation="relu"), probe, "")
        telemetry.measure(0)
        return pd.DataFrame(telemetry.tables["layers"])

    plain, one = measured(), nn.ReLU()
    for kind in (lambda config: nn.ReLU(inplace=True), lambda config: one):
        monkeypatch.setitem(ACTIVATIONS, "relu", kind)
        pd.testing.assert_frame_equal(measured(), plain)
    monkeypatch.setitem(ACTIVATIONS, "relu", lambda config: SlopePerUnit())
    assert measured()["slope"].tolist() == [0.5, 0.5]


def test_probing_leaves_training_untouched(tiny, trained):
    changes = dict(probe_every=1, eval_every=1, save_every=3)
    often = train(tiny(training=changes), quiet=True)
    assert metric(often, "train_loss").tolist() == metric(trained, "train_loss").tolist()
    assert (often / "model/model.safetensors").read_bytes() == (trained / "model/model.safetensors").read_bytes()


def test_dropout_is_off_in_measurements(tiny, trained):
    run = train(tiny(model={"embd_pdrop": 0.5}, training={"steps": 1}), quiet=True)
    for name in ("layers", "heads"):
        first = [table(r, name).query("step == 0").reset_index(drop=True) for r in (run, trained)]
        pd.testing.assert_frame_equal(*first)
    assert metric(run, "eval_loss")[0] == metric(trained, "eval_loss")[0]
    assert metric(run, "train_loss")[1] != metric(trained, "train_loss")[1]


# --- divergence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 4])
def test_a_run_that_diverges_in_an_evaluation_is_a_result(step, tiny, monkeypatch, tmp_path):
    """Before the first update, or between two probes: the last probe is made all the same."""
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    evaluate = Training.evaluate

    def ending(self: Training) -> None:
        evaluate(self)
        if self.step == step:
            self.telemetry.diverged = {"step": step, "layer": 2, "where": "evaluation"}

    monkeypatch.setattr(Training, "evaluate", ending)
    run = train(tiny(training=dict(eval_every=4, probe_every=5)), quiet=True)
    assert record(run)["diverged"] == {"step": step, "layer": 2, "where": "evaluation"}
    for name in ("heads", "positions"):
        assert table(run, name)["step"].max() == step
    assert len(runs.load_runs().positions) == len(table(run, "positions"))


@pytest.mark.parametrize("stream", ["float32", "float16"])
def test_a_run_that_skips_goes_on_with_the_weights_it_has(stream, tiny, monkeypatch, tmp_path):
    """One update has gradients that are not finite: it is left out, counted, and the next ones are made."""
    monkeypatch.setenv("NFCORE_RUNS", str(tmp_path))
    update, seen = Training.update, []

    def spoilt(self: Training) -> Any:
        hooks = [self.model.final_norm.register_forward_hook(lambda m, a, y: y * math.nan)] if self.step == 4 else []
        before = [p.detach().clone() for p in self.model.parameters()]
        found = update(self)
        seen.append(all(map(torch.equal, before, self.model.parameters())))
        for hook in hooks:
            hook.remove()
        return found

    monkeypatch.setattr(Training, "update", spoilt)
    changes = dict(model={"residual_dtype": stream}, training={"on_nonfinite": "skip", "precision": "bfloat16"})
    found = record(train(tiny(**changes), quiet=True))
    assert seen == [step == 4 for step in range(10)]
    assert (found["status"], found["final"]["step"], found["diverged"]["step"]) == ("complete", 10, 5)
    assert math.isfinite(found["final"]["perplexity"])
    norms = runs.load_runs().metrics.query("name == 'grad_norm'").set_index("step")["value"]
    assert norms.index[~np.isfinite(norms)].tolist() == [5]


def test_diverged_run_is_a_result(tiny, diverged, monkeypatch, capsys):
    found = record(diverged)
    assert found["status"] == "diverged"
    event = found["diverged"]
    assert 1 < event["step"] < 10
    assert 0 <= event["layer"] <= 2
    assert event["where"] in ("forward", "backward")
    assert found["final"]["perplexity"] is None
    assert found["final"]["eval_loss"] is None
    assert np.isfinite(found["final"]["best_eval_loss"])
    assert not (diverged / "model").exists()
    assert metric(diverged, "train_loss").index.max() == event["step"]
    assert table(diverged, "heads")["step"].max() == event["step"]
    assert table(diverged, "layers")["step"].min() == 0
    monkeypatch.setattr(training, "_run", lambda *args: pytest.fail("trained again"))
    assert train(tiny(training={"learning_rate": 1e6})) == diverged
    assert "reused" in capsys.readouterr().out


def backward(model: NormFreeForCausalLM) -> None:
    ids = torch.randint(VOCAB, (2, 8))
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()


def test_health_and_evaluation_raise_no_flag_and_usual_gradients_keep_every_bit():
    model = network()
    bad = Watch(model)
    for step in (1, 2):
        bad.step.fill_(step)
        backward(model)
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        bad.check_gradients()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    model.blocks[0].ffn.down.weight.data.fill_(float("nan"))
    model.eval()(input_ids=torch.randint(VOCAB, (2, 8)))
    assert bad.events() == (None, None)


@pytest.mark.parametrize("size", [1e7, 1e18, 3e38])
def test_a_large_finite_gradient_is_an_explosion_and_is_clipped(size):
    """1e18 in every entry is finite; its norm overflows float32, and clipping by that would multiply it by zero."""
    model = network(tie_word_embeddings=False)
    bad = Watch(model)
    parameters = list(model.parameters())
    bad.step.fill_(3)
    for p in parameters:
        p.grad = torch.full_like(p, size)
    bad.check_gradients()
    assert bad.events() == (None, {"step": 3, "layer": 2})
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert norm.isfinite()
    clipped = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert float(clipped.double().norm()) == pytest.approx(1.0, rel=1e-4)


def test_a_run_goes_on_after_an_explosion(tiny):
    """Weights so large that gradients explode at once, in a model that stays finite."""
    large = {"ffn_gain": 1e4, "ffn_output_gain": 1e4, "final_norm": "none"}
    found = record(train(tiny(model=large, training={"learning_rate": 1e-6, "final_learning_rate": 0.0}), quiet=True))
    assert found["exploded"]["step"] == 1
    assert found["status"] == "complete"
    assert found["diverged"] is None


@pytest.mark.parametrize("name", ["embed.weight", "positions.weight", "activations.1.slope"])
def test_gradients_outside_the_blocks_are_watched_as_the_first_layers(name):
    model = network(activation="learnable_leaky_relu")
    bad = Watch(model)
    for step, size in ((1, 1e20), (2, math.nan)):
        model.get_parameter(name).grad = torch.full_like(model.get_parameter(name), size)
        bad.step.fill_(step)
        bad.check_gradients()
        assert model.get_parameter(name).grad.norm().isfinite() or step == 2
    assert bad.events() == ({"step": 2, "layer": 0, "where": "backward"}, {"step": 1, "layer": 0})


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_bad_weights_are_found_in_the_forward_pass(layer):
    model = network(tie_word_embeddings=False)
    bad = Watch(model)
    for step in (1, 2, 3):
        if step == 2:
            weight = model.lm_head.weight if layer == 2 else model.blocks[layer].ffn.down.weight
            weight.data[0, 0] = float("nan")
        bad.step.fill_(step)
        backward(model)
        bad.check_gradients()
    assert bad.events()[0] == {"step": 2, "layer": layer, "where": "forward"}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tied", [True, False])
def test_bad_gradients_are_found_in_the_backward_pass(layer, value, tied):
    model = network(tie_word_embeddings=tied)
    bad = Watch(model)
    module = model.lm_head if layer == 2 else model.blocks[layer].ffn.down
    module.register_full_backward_hook(lambda m, g, out: (torch.full_like(g[0], value),))
    bad.step.fill_(5)
    backward(model)
    bad.check_gradients()
    assert bad.events() == ({"step": 5, "layer": layer, "where": "backward"}, None)


def test_gradients_are_left_alone_where_loss_scaling_overflows_them(tiny):
    made = Training(tiny(), prepare(tiny().data), Path("unused"))
    made.model.blocks[0].ffn.down.register_full_backward_hook(lambda m, g, out: (torch.full_like(g[0], float("inf")),))
    made.precision = "float16"
    made.update()
    assert made.watch.events() == (None, None)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["float32", "bfloat16"])
def test_bfloat16_keeps_the_residual_stream_as_asked_and_the_weights_in_float32(tiny, residual):
    experiment = tiny(model={"residual_dtype": residual}, training={"precision": "bfloat16"})
    made, seen, losses = Training(experiment, prepare(experiment.data), Path("unused")), set(), []
    made.model.blocks[0].register_forward_hook(lambda m, a, out: seen.add((a[0].dtype, out[0].dtype)))
    for _ in range(3):
        made.update()
        losses.append(float(made.loss_sum) - sum(losses))
    dtype = getattr(torch, residual)
    assert seen == {(dtype, dtype)}
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert losses[-1] < losses[0]


def test_gradient_checkpointing_is_what_the_setting_asks_for(tiny):
    for asked in (False, True):
        made = Training(tiny(training={"gradient_checkpointing": asked}), prepare(tiny().data), Path("unused"))
        assert recomputes_activations(made.model) == asked


def test_no_steps_are_one_epoch(tiny, monkeypatch):
    experiment = tiny(data={"max_documents": 3}, training={"steps": None})
    rows = np.asarray(prepare(experiment.data).train)
    assert len(rows) > 16
    seen = batches(experiment, monkeypatch).flatten(0, 1).tolist()
    assert len(seen) == len(rows) // 8 * 8
    assert record(runs.runs_dir() / experiment.id)["final"]["step"] == len(rows) // 8
    left = rows.tolist()
    for row in seen:
        left.remove(row)  # fails for a sequence read twice


@pytest.mark.parametrize(
    ("changes", "processes", "options", "said"),
    [
        ({"batch_size": 4096}, 1, {}, r"training\.batch_size: 4096 is more than the \d+ training sequences"),
        ({"batch_size": 4096, "steps": None}, 1, {}, r"training\.batch_size: 4096 is more than the \d+ training"),
        ({}, 3, {}, r"training\.batch_size: 8 is not a multiple of the 3 processes"),
        ({}, 1, {"fsdp": True}, "fsdp: needs several processes"),
        ({}, 1, {"report_to": ["clearml"]}, "report_to: 'clearml' is not installed"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, processes, options, said, tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(SettingsError, match=said):
        Training(tiny(training=changes), prepare(tiny().data), Path("unused"), **options)


def test_float16_without_a_cuda_device_and_what_holds_no_settings_are_refused(tiny):
    given = {"experiment: 'relu.yaml' must be a mapping": "relu.yaml", r"experiment: \[\] must be a mapping": []}
    if not torch.cuda.is_available():
        given[r"training\.precision: 'float16' needs a CUDA device"] = tiny(training={"precision": "float16"})
    for said, experiment in given.items():
        with pytest.raises(SettingsError, match=said):
            train(experiment, quiet=True)


def test_progress_says_what_is_left(tiny, monkeypatch, capsys):
    run = train(tiny(name="a label", training={"steps": 2}), fresh=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert re.match(r"  a label \[\w+\]: 100% of \S+ tokens, .* tokens/s, 00:00 left, loss \d", last)
    assert not (run / "progress").exists()


def test_the_commit_of_a_repository_around_an_installed_package_is_not_reported(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    installed = tmp_path / "lib" / "nfcore" / "machine.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "somebody else's")
    monkeypatch.setattr(machine, "__file__", str(installed))
    assert machine.git_commit() is None
    git("add", "--all")
    git("commit", "--quiet", "-m", "ours")
    assert machine.git_commit() == git("rev-parse", "HEAD")
