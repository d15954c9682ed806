"""Settings: what is refused and how it is said, and what makes two runs the same run."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfcore.settings import (
    ACTIVATIONS,
    SHAPES,
    DataSettings,
    Experiment,
    ModelSettings,
    SettingsError,
    TrainingSettings,
    override,
    project_root,
    read_yaml,
)


SECTIONS = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}
NAN, INF = float("nan"), float("inf")


def every_field() -> set[tuple[str, str]]:
    return {(section, f.name) for section, cls in SECTIONS.items() for f in fields(cls)}


def refusal(settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Experiment.from_dict(settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# (section, field, wrong value, what the message says is allowed)
BAD_VALUES = [
    ("model", "family", "bert", "gpt2, pythia"),
    ("model", "vocab_size", 0, "at least 1"),
    ("model", "hidden_size", 0, "at least 1"),
    ("model", "num_hidden_layers", 0, "at least 1"),
    ("model", "num_attention_heads", -1, "at least 1"),
    ("model", "num_attention_heads", 0, "at least 1"),
    ("model", "intermediate_size", 0, "at least 1"),
    ("model", "max_position_embeddings", 0, "at least 1"),
    ("model", "norm", "batchnorm", "layernorm, rmsnorm, none"),
    ("model", "final_norm", "", "layernorm, rmsnorm, none"),
    ("model", "norm_eps", -1e-5, "at least 0"),
    ("model", "activation", "swish", ", ".join(ACTIVATIONS)),
    ("model", "negative_slope", NAN, "finite"),
    ("model", "negative_slope", INF, "finite"),
    ("model", "slope_sharing", "global", "per_layer, shared"),
    ("model", "activation_scale", 0.0, "above 0"),
    ("model", "activation_scale", NAN, "above 0"),
    ("model", "biases", "some", "paper, all, none"),
    ("model", "init", "xavier", "paper, gpt2, width"),
    ("model", "embd_pdrop", 1.5, "between 0.0 and 1.0"),
    ("model", "residual_dtype", "float64", "float32, bfloat16, float16"),
    ("model", "rotary_fraction", -0.25, "between 0.0 and 1.0"),
    ("model", "rotary_base", 0.0, "above 0"),
    ("model", "embedding_gain", 0.0, "above 0"),
    ("model", "ffn_gain", -1.0, "above 0"),
    ("model", "ffn_output_gain", 0.0, "above 0"),
    ("model", "tie_word_embeddings", 1, "bool"),
    ("data", "corpus", "", "a path"),
    ("data", "text_column", 3, "str"),
    ("data", "tokenizer", 3, "str or null"),
    ("data", "vocab_size", 256, "between 257 and 1048576"),
    ("data", "vocab_size", 2**20 + 1, "between 257 and 1048576"),
    ("data", "context", 1, "at least 2"),
    ("data", "packing", "padded", "per-file, packed"),
    ("data", "split_by", "line", "group, document"),
    ("data", "validation_fraction", 0.0, "between 0 and 1"),
    ("data", "validation_fraction", 1.0, "between 0 and 1"),
    ("data", "max_documents", 0, "at least 1"),
    ("data", "max_validation_documents", 0, "at least 1"),
    ("data", "train_files", ["a.parquet"], "str or null"),
    ("data", "validation_files", False, "str or null"),
    ("data", "streaming", 1, "bool"),
    ("training", "steps", 0, "at least 1"),
    ("training", "batch_size", 0, "at least 1"),
    ("training", "micro_batch_size", 0, "batch_size 32"),
    ("training", "micro_batch_size", 5, "batch_size 32"),
    ("training", "learning_rate", 0.0, "above 0"),
    ("training", "learning_rate", INF, "above 0"),
    ("training", "final_learning_rate", 1.0, "between 0 and 0.001"),
    ("training", "warmup_fraction", 1.5, "between 0 and 1"),
    ("training", "schedule", "cosine", "linear, hf_linear"),
    ("training", "optimizer", "sgd", "adamw, hf_adamw"),
    ("training", "beta1", 1.0, "below 1"),
    ("training", "beta2", -0.1, "below 1"),
    ("training", "epsilon", 0.0, "above 0"),
    ("training", "weight_decay", -0.1, "at least 0"),
    ("training", "slope_weight_decay", -0.1, "at least 0"),
    ("training", "max_grad_norm", 0.0, "above 0"),
    ("training", "precision", "fp16", "float32, bfloat16, float16"),
    ("training", "compile", "yes", "bool"),
    ("training", "gradient_checkpointing", 1, "bool"),
    ("training", "chunked_loss", 1, "bool"),
    ("training", "eval_every", 0, "at least 1"),
    ("training", "eval_sequences", 0, "at least 1"),
    ("training", "probe_every", 0, "at least 1"),
    ("training", "probe_sequences", 0, "at least 1"),
    ("training", "log_every", 0, "at least 1"),
    ("training", "save_every", 0, "at least 1"),
    ("training", "threads", 0, "at least 1"),
]


@pytest.mark.parametrize(("section", "name", "value", "allowed"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_field_and_what_is_allowed(section, name, value, allowed):
    message = refusal({section: {name: value}})
    assert message.startswith(f"{section}.{name}: ")
    assert repr(value) in message
    assert allowed in message


def test_bad_values_cover_every_field():
    assert {(section, name) for section, name, *_ in BAD_VALUES} == every_field()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_range(seed):
    message = refusal({"seed": seed})
    assert message.startswith(f"seed: {seed}")
    assert "4294967295" in message


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"training": {"learning_rate": "1e-3"}}, ("training.learning_rate", "'1e-3'", "float", "0.001")),
        ({"training": {"learning_rate": "fast"}}, ("training.learning_rate", "'fast'", "float")),
        ({"training": {"steps": True}}, ("training.steps", "True", "int")),
        ({"training": {"steps": 6e2}}, ("training.steps", "600.0", "int")),
        ({"training": {"weight_decay": False}}, ("training.weight_decay", "False", "float")),
        ({"seed": True}, ("seed", "True", "int")),
        ({"seed": "0"}, ("seed", "'0'", "int")),
        ({"name": 3}, ("name", "3", "str")),
        ({"model": {"family": None}}, ("model.family", "None", "str")),
        ({"model": "gpt2"}, ("model", "'gpt2'", "mapping")),
        ({"training": {"steps": 16**5000}}, ("training.steps", "20001 bits", "2**63")),
        ({"training": {"learning_rate": 10**400}}, ("training.learning_rate", "1329 bits", "2**63")),
        ({"seed": -(2**63)}, ("seed", "64 bits", "2**63")),
        ({"data": {"corpus": "a\0b"}}, ("data.corpus", "must be text", "NUL")),
        ({"name": "\ud800"}, ("name", "must be text", "half a character")),
        ([1], ("experiment", "mapping")),
        ({"modle": {}}, ("experiment", "'modle'", "model, data, training, seed, name")),
        ({"model": {"heads": 4}}, ("model", "'heads'", "num_attention_heads")),
        ({"model": {"shape": "gpt3"}}, ("model.shape", "'gpt3'", "gpt2-2x32")),
        (
            {"model": {"hidden_size": 64, "num_attention_heads": 5}},
            ("model.num_attention_heads", "5", "model.hidden_size 64"),
        ),
        (
            {"data": {"context": 65}, "model": {"max_position_embeddings": 64}},
            ("data.context", "65", "max_position_embeddings 64"),
        ),
        (
            {"data": {"vocab_size": 300}, "model": {"vocab_size": 301}},
            ("model.vocab_size", "301", "data.vocab_size 300"),
        ),
        ({"data": {"streaming": True}}, ("data.streaming", "true", "codeparrot", "'python-source'")),
        ({"data": {"train_files": "a.parquet"}}, ("data.train_files", "data.validation_files", "both")),
        ({"data": {"train_files": "a", "validation_files": "b"}}, ("data.train_files", "codeparrot", "python-source")),
    ],
)
def test_other_refusals(settings, names):
    message = refusal(settings)
    for name in names:
        assert name in message


def test_yaml_reads_1e_3_as_text():
    """The trap that the hint is about."""
    assert yaml.safe_load("learning_rate: 1e-3") == {"learning_rate": "1e-3"}


# A value other than the default for every field, and what must hold beside it on both sides of the comparison.
OTHER_VALUES: dict[tuple[str, str], Any] = {
    ("model", "family"): "pythia",
    ("model", "hidden_size"): 384,
    ("model", "num_hidden_layers"): 2,
    ("model", "num_attention_heads"): 2,
    ("model", "intermediate_size"): 5,
    ("model", "max_position_embeddings"): 512,
    ("model", "norm"): "none",
    ("model", "final_norm"): "none",
    ("model", "norm_eps"): 1e-6,
    ("model", "activation"): "relu",
    ("model", "negative_slope"): 0.1,
    ("model", "slope_sharing"): "shared",
    ("model", "activation_scale"): 2.0,
    ("model", "biases"): "none",
    ("model", "init"): "width",
    ("model", "embd_pdrop"): 0.1,
    ("model", "residual_dtype"): "bfloat16",
    ("model", "rotary_fraction"): 0.5,
    ("model", "rotary_base"): 500.0,
    ("model", "embedding_gain"): 2.0,
    ("model", "ffn_gain"): 2.0,
    ("model", "ffn_output_gain"): 2.0,
    ("model", "tie_word_embeddings"): False,
    ("data", "corpus"): "codeparrot",
    ("data", "text_column"): "text",
    ("data", "tokenizer"): "here",
    ("data", "vocab_size"): 300,
    ("data", "context"): 64,
    ("data", "packing"): "packed",
    ("data", "split_by"): "document",
    ("data", "validation_fraction"): 0.1,
    ("data", "max_documents"): 7,
    ("data", "max_validation_documents"): 7,
    ("data", "train_files"): "other",
    ("data", "validation_files"): "other",
    ("data", "streaming"): True,
    ("training", "steps"): None,
    ("training", "batch_size"): 64,
    ("training", "micro_batch_size"): 16,
    ("training", "learning_rate"): 2e-3,
    ("training", "final_learning_rate"): 0.0,
    ("training", "warmup_fraction"): 0.1,
    ("training", "schedule"): "hf_linear",
    ("training", "optimizer"): "hf_adamw",
    ("training", "beta1"): 0.8,
    ("training", "beta2"): 0.95,
    ("training", "epsilon"): 1e-6,
    ("training", "weight_decay"): 0.0,
    ("training", "slope_weight_decay"): 0.0,
    ("training", "max_grad_norm"): 2.0,
    ("training", "precision"): "bfloat16",
    ("training", "compile"): True,
    ("training", "gradient_checkpointing"): True,
    ("training", "chunked_loss"): True,
    ("training", "eval_every"): 7,
    ("training", "eval_sequences"): 7,
    ("training", "probe_every"): 7,
    ("training", "probe_sequences"): 7,
    ("training", "log_every"): 7,
    ("training", "save_every"): 7,
}


@pytest.mark.parametrize(("section", "name"), OTHER_VALUES)
def test_any_other_setting_is_another_run(section, name):
    files = {"corpus": "codeparrot", "train_files": "train", "validation_files": "validation"}
    base = {"data": files} if name.endswith("_files") or name == "streaming" else {}
    changed = {**base, section: {**base.get(section, {}), name: OTHER_VALUES[section, name]}}
    assert Experiment.from_dict(changed).id != Experiment.from_dict(base).id


def test_other_values_cover_every_field():
    untested = {("training", "threads"), ("model", "vocab_size")}  # not identity; follows data.vocab_size
    assert set(OTHER_VALUES) == every_field() - untested


def test_identity_ignores_the_label_and_the_threads_only():
    plain = Experiment.from_dict({})
    assert Experiment.from_dict({"name": "SM+R", "training": {"threads": 2}}).id == plain.id
    assert Experiment.from_dict({"seed": 1}).id != plain.id
    assert len(plain.id) == 12
    assert int(plain.id, 16) >= 0


def test_identity_is_the_same_with_defaults_written_out():
    plain = Experiment.from_dict({})
    assert Experiment.from_dict(plain.to_dict()) == plain
    assert Experiment.from_dict(plain.to_dict()).id == plain.id
    assert Experiment.from_dict(yaml.safe_load(yaml.safe_dump(plain.to_dict()))).id == plain.id
    assert Experiment.from_dict({"model": None, "data": {}, "training": None}).id == plain.id


def test_identity_is_the_same_however_a_number_is_spelled():
    assert (
        Experiment.from_dict({"training": {"max_grad_norm": 1, "slope_weight_decay": 0}}).id
        == Experiment.from_dict({"training": {"max_grad_norm": 1.0, "slope_weight_decay": 0.0}}).id
    )
    assert (
        Experiment.from_dict({"model": {"rotary_base": 10000}}).id
        == Experiment.from_dict({"model": {"rotary_base": 1.0e4}}).id
    )


def test_identity_does_not_depend_on_the_process():
    script = "from nfcore.settings import Experiment; print(Experiment.from_dict({}).id)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == Experiment.from_dict({}).id


def test_what_follows_from_other_fields():
    model = ModelSettings(hidden_size=48)
    assert (model.intermediate_size, model.tie_word_embeddings) == (192, True)
    assert ModelSettings(family="pythia").tie_word_embeddings is False
    training = TrainingSettings(batch_size=8, weight_decay=0.3)
    assert (training.micro_batch_size, training.slope_weight_decay) == (8, 0.3)
    assert Experiment.from_dict({"data": {"vocab_size": 300}}).model.vocab_size == 300


@pytest.mark.parametrize("shape", SHAPES)
def test_a_named_shape_fills_the_sizes_and_other_keys_override_it(shape):
    model = Experiment.from_dict({"model": {"shape": shape, "norm": "none"}}).model
    assert model == ModelSettings(**SHAPES[shape], norm="none", vocab_size=1024)
    assert Experiment.from_dict({"model": {"shape": shape, "num_hidden_layers": 3}}).model.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "SM+LN+G"),
        ({"activation": "relu"}, "SM+LN+R"),
        ({"norm": "none"}, "SM+G"),
        ({"norm": "none", "activation": "relu"}, "SM+R"),
        ({"activation": "identity"}, "SM+LN"),
        ({"norm": "none", "activation": "identity"}, "SM"),
        ({"norm": "rmsnorm", "activation": "gelu_tanh"}, "SM+RMS+G(tanh)"),
    ],
)
def test_configurations_have_the_papers_names(changes, name):
    assert ModelSettings(**changes).configuration == name


def test_different_activations_have_different_names():
    changes = [{"activation": a} for a in ACTIVATIONS]
    changes += [
        {"activation": "leaky_relu", "negative_slope": 0.1},
        {"activation": "scaled_gelu", "activation_scale": 8.0},
    ]
    changes += [{"activation": "learnable_leaky_relu", "slope_sharing": "shared"}]
    assert len({ModelSettings(**c).configuration for c in changes}) == len(changes)


def test_override_reads_yaml_and_numbers():
    base = {"training": {"steps": 5}, "seed": 0}
    changed = override(
        base,
        [
            "training.learning_rate=1e-3",
            "training.steps=null",
            "model.norm=none",
            "seed=3",
            "training.compile=true",
            "name=",
        ],
    )
    assert changed == {
        "training": {"steps": None, "learning_rate": 1e-3, "compile": True},
        "model": {"norm": "none"},
        "seed": 3,
        "name": None,
    }
    assert base == {"training": {"steps": 5}, "seed": 0}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("training.steps", "section.field=value"),
        ("=3", "section.field=value"),
        ("seed.steps=3", "'seed' is not a section"),
        ("training.steps=[3", "training.steps: '[3' is not valid YAML"),
    ],
)
def test_override_refuses(assignment, said):
    with pytest.raises(SettingsError) as caught:
        override({"seed": 0}, [assignment])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_of_an_unknown_setting_is_refused():
    refused = refusal(override({}, ["training.step=3"]))
    assert "'step'" in refused


def test_read_yaml(tmp_path):
    good, empty, bad, binary = (tmp_path / f"{name}.yaml" for name in ("good", "empty", "bad", "binary"))
    good.write_text("seed: 3")
    empty.write_text("")
    bad.write_text("seed: [1\nmodel: }")
    binary.write_bytes(b"\xff\xfe\x00")
    assert read_yaml(good) == {"seed": 3}
    assert read_yaml(empty) == {}
    for path in (bad, binary, tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(SettingsError) as caught:
            read_yaml(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    good.write_text("- 1")
    with pytest.raises(SettingsError, match="mapping"):
        read_yaml(good)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1, 2]\nb: *x", "aliases are not allowed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "aliases"),
        ("a: &a\n  b: *a", "aliases"),
        ("[" * 10**5, "more than 16 levels"),
        ("a:\n" + "".join(" " * i + "- \n" for i in range(500)), "more than 16 levels"),
        ("x: " + "[" * 15 + "]" * 15, None),
        ("x: " + "[" * 16 + "]" * 16, "more than 16 levels"),
        ("#" * (2**20 - 1), None),
        ("#" * (2**20 + 1), "1048577 characters of YAML, at most 1048576"),
        ("a: 2001-13-01", "month must be in 1..12"),
        ("a: !!int x", "invalid literal"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("? [a]\n: b", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_yaml_is_plain_and_of_bounded_size_and_depth(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    if said is None:
        assert isinstance(read_yaml(tmp_path / "a.yaml"), dict)
        return
    with pytest.raises(SettingsError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"seed: .* is not valid YAML"):
        override({}, [f"seed={text}"])


def test_messages_stay_short():
    for settings in ({"name": ["x" * 10**6] * 99}, {"x" * 10**6: 1}, {"model": {"family": "x" * 10**6}}):
        assert len(refusal(settings)) < 2000


def test_shipped_yaml_can_be_read():
    for path in (*Path("notebooks/params").glob("*.yaml"), Path("data/claims.yaml")):
        assert read_yaml(path) == yaml.safe_load(path.read_text())


def test_project_root(monkeypatch, tmp_path):
    monkeypatch.delenv("NFCORE_ROOT", raising=False)
    assert (project_root() / "data" / "published").is_dir()
    monkeypatch.setenv("NFCORE_ROOT", str(tmp_path))
    assert project_root() == tmp_path


def test_settings_added_later_leave_the_ids_of_earlier_runs():
    """Some of the study's runs were recorded before these settings."""
    recorded = json.loads(Path("data/recorded/transient/records.json").read_text())
    earlier = [record["settings"] for record in recorded if "ffn_output_gain" not in record["settings"]["model"]]
    assert earlier
    later = {"chunked_loss", "optimizer", "schedule"}
    assert not any(later & settings["training"].keys() for settings in earlier)
    for record in recorded:
        assert Experiment.from_dict(record["settings"]).id == record["id"]


def test_a_number_too_long_to_write_is_refused_in_words() -> None:
    with pytest.raises(SettingsError, match=r"model: a number of 20000 bits must be a mapping"):
        Experiment.from_dict(override({}, ["model=0x" + "f" * 5000]))
