"""Settings: what is taken, what is refused and how it is said, and what makes two runs the same run."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfcore.settings import (
    ACTIVATION_LETTERS,
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


def refusal(settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Experiment.from_dict(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Of every field, values that are refused and values that are taken; the first of these is not the default.
FIELDS: dict[str, tuple[list[Any], list[Any]]] = {
    "model.family": (["bert", ""], ["pythia", "gpt2"]),
    "model.hidden_size": ([0], [384, 12]),
    "model.num_attention_heads": ([0, -1, 5], [1, 768]),
    "model.max_position_embeddings": ([0], [128, 1]),
    "model.norm": (["batchnorm", ""], ["none", "rmsnorm"]),
    "model.final_norm": (["batchnorm", ""], ["none", "rmsnorm"]),
    "model.norm_eps": ([-1e-5, INF], [0.0]),
    "model.activation": (["swish", ""], ["relu", *ACTIVATION_LETTERS]),
    "model.negative_slope": ([NAN, INF], [-1.0, 0.0]),
    "model.slope_sharing": (["global"], ["shared"]),
    "model.activation_scale": ([0.0, NAN], [1e-9]),
    "model.biases": (["some"], ["none", "all"]),
    "model.init": (["xavier"], ["width", "gpt2"]),
    "model.embd_pdrop": ([-0.1, 1.1], [1.0]),
    "model.residual_dtype": (["float64", "auto"], ["bfloat16", "float16"]),
    "model.rotary_fraction": ([-0.1, 1.1], [0.0, 1.0]),
    "model.rotary_base": ([0.0, INF], [1e-9]),
    "model.tie_word_embeddings": ([0], [False, None]),
    "model.embedding_gain": ([0.0], [2.0]),
    "model.ffn_gain": ([-1.0], [2.0]),
    "model.ffn_output_gain": ([NAN], [2.0]),
    "model.attention_scales": ([[], [1.0, 2.0], 2.0], [[2.0] * 12, None]),
    "data.corpus": ([""], ["x", "codeparrot"]),
    "data.text_column": ([None], ["text"]),
    "data.tokenizer": ([3], ["here", None]),
    "data.vocab_size": ([256, 2**20 + 1], [257, 2**20]),
    "data.context": ([1], [2]),
    "data.packing": (["padded"], ["packed"]),
    "data.split_by": (["line"], ["document"]),
    "data.validation_fraction": ([0.0, 1.0], [0.999]),
    "data.train_files": ([["a.parquet"]], ["other"]),
    "data.validation_files": ([3], ["other"]),
    "data.streaming": ([0], [True]),
    "training.micro_batch_size": ([0, 5, 33], [1, 32, None]),
    "training.learning_rate": ([0.0, INF, NAN], [1.0]),
    "training.final_learning_rate": ([-1e-9, 0.0011], [0.0, 1e-3]),
    "training.warmup_fraction": ([-0.1, 1.1], [0.0, 1.0]),
    "training.schedule": (["cosine"], ["hf_linear"]),
    "training.optimizer": (["sgd"], ["hf_adamw"]),
    "training.beta1": ([-0.1, 1.0], [0.0]),
    "training.beta2": ([-0.1, 1.0], [0.0]),
    "training.epsilon": ([0.0], [1e-9]),
    "training.weight_decay": ([-0.1], [0.0]),
    "training.slope_weight_decay": ([-0.1], [0.0, None]),
    "training.ffn_rate": ([0.0], [4.0]),
    "training.entropy_penalty": ([-1.0], [1.0]),
    "training.entropy_target": ([1.1], [0.0]),
    "training.max_grad_norm": ([0.0], [1e-9]),
    "training.on_nonfinite": (["ignore"], ["skip"]),
    "training.precision": (["fp16"], ["auto", "bfloat16", "float16"]),
    ".seed": ([-1, 2**32], [2**32 - 1]),
    ".name": ([3], ["a label"]),
}
COUNTS = "model.vocab_size model.num_hidden_layers training.batch_size training.eval_every training.log_every"
COUNTS += " training.save_every training.probe_every training.probe_sequences"
OPTIONAL = "model.intermediate_size data.max_documents data.max_validation_documents training.steps"
OPTIONAL += " training.eval_sequences training.threads"
SWITCHES = "model.qk_norm training.compile training.gradient_checkpointing training.chunked_loss"
FIELDS |= dict.fromkeys(COUNTS.split(), ([0], [1])) | dict.fromkeys(OPTIONAL.split(), ([0], [1, None]))
FIELDS |= dict.fromkeys(SWITCHES.split(), ([1], [True]))
WRONG_TYPES = {"integer": ["1", 1.0, True], "number": ["1", False], "boolean": ["yes", 1], "string": [3, b"x"]}
# What must hold beside it.
FILES = {"corpus": "codeparrot", "train_files": "train", "validation_files": "validation"}
BESIDE = {"train_files": FILES, "validation_files": FILES, "streaming": {"corpus": "codeparrot"}}


def experiment(section: str, settings: dict[str, Any]) -> Experiment:
    return Experiment.from_dict({section: settings} if section else settings)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_takes_what_is_allowed_and_nothing_else(field):
    section, name = field.split(".")
    cls = SECTIONS.get(section, Experiment)
    wrong, right = FIELDS[field]
    schema = cls.model_json_schema()["properties"][name]
    for kind in schema.get("anyOf", [schema]):
        wrong = [*wrong, *WRONG_TYPES.get(kind["type"], [])]
    for value in wrong:
        message = refusal({section: {name: value}} if section else {name: value})
        assert message.startswith(f"{field}: {value!r} ".removeprefix(".")), message
        assert " must " in message or " is not one of " in message
    for value in right:
        made = cls(
            **{"data": {"vocab_size": 50257}, name: value} if not section else {**BESIDE.get(name, {}), name: value}
        )
        assert getattr(made, name) == value or value is None


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - {"model.vocab_size"}))  # which follows data.vocab_size
def test_any_other_setting_is_another_run(field):
    section, name = field.split(".")
    beside = BESIDE.get(name, {})
    same = experiment(section, beside).id == experiment(section, {**beside, name: FIELDS[field][1][0]}).id
    assert same == (name in ("name", "threads"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate: 'fast' must be a valid number"),
        ({"model": {"norm": "batchnorm"}}, "model.norm: 'batchnorm' is not one of layernorm, rmsnorm, none"),
        ({"model": {"shape": "gpt3"}}, f"model.shape: 'gpt3' is not one of {', '.join(SHAPES)}"),
        ([1], "experiment: [1] must be a mapping from names"),
        ({"model": "gpt2"}, "model: 'gpt2' must be a mapping from names"),
        ({"model": {4: 4}}, "model: {4: 4} must be a mapping from names"),
        ({"modle": {}}, "experiment: unknown setting 'modle'; allowed: model, data, training, seed, name"),
        ({"model": {"self": 4}}, f"model: unknown setting 'self'; allowed: {', '.join(ModelSettings.model_fields)}"),
        ({"model": {"num_attention_heads": 5}}, "model.num_attention_heads: 5 must divide model.hidden_size 768"),
        ({"training": {"micro_batch_size": 5}}, "training.micro_batch_size: 5 must divide training.batch_size 32"),
        ({"data": {"context": 1025}}, "data.context: 1025 must be at most model.max_position_embeddings 1024"),
        ({"model": {"vocab_size": 301}}, "model.vocab_size: 301 must be data.vocab_size 1024"),
        ({"data": {"train_files": "a"}}, "data.train_files and data.validation_files: give both or neither"),
        (
            {"data": {"train_files": "a", "validation_files": "b"}},
            "data.train_files: 'a' must go with data.corpus codeparrot, not with 'python-source'",
        ),
    ],
)
def test_messages(settings, message):
    assert refusal(settings) == message


def test_messages_stay_short():
    for settings in ({"name": ["x" * 10**6] * 99}, {"x" * 10**6: 1}, {"model": {"family": "x" * 10**6}}):
        assert len(refusal(settings)) < 2000


def test_the_table_has_every_field_and_each_says_what_it_means():
    sections = {**SECTIONS, "": Experiment}
    fields = {
        f"{section}.{name}": field
        for section, cls in sections.items()
        for name, field in cls.model_fields.items()
        if name not in SECTIONS
    }
    assert fields.keys() == FIELDS.keys()
    assert all(field.description for field in fields.values())


def test_settings_stay_as_they_are_and_copies_are_checked():
    settings = TrainingSettings(steps=3)
    with pytest.raises(ValueError, match="frozen"):
        settings.steps = 4
    assert settings.replace(steps=4).to_dict() == {**settings.to_dict(), "steps": 4}
    with pytest.raises(SettingsError, match=r"training.steps: 0 must"):
        settings.replace(steps=0)
    with pytest.raises(SettingsError, match="training: unknown setting 'step'; allowed: steps, batch_size"):
        TrainingSettings(step=3)
    made = Experiment.from_dict({"seed": 3, "training": {"steps": 4}})
    assert pickle.loads(pickle.dumps(made)) == made
    five = Experiment.from_dict({"training": {"steps": 5}})
    assert made.replace(training=made.training.replace(steps=5), seed=0) == five


# --- what makes two runs the same run ---------------------------------------------------------------------------


def test_recorded_runs_keep_their_ids():
    records = [r for path in Path("data/recorded").glob("*/records.json") for r in json.loads(path.read_text())]
    assert len(records) > 300
    assert any("ffn_output_gain" not in record["settings"]["model"] for record in records)  # older than that setting
    for record in records:
        assert Experiment.from_dict(record["settings"]).id == record["id"]


def test_identity_is_the_same_however_it_is_written():
    plain = Experiment.from_dict({})
    assert len(plain.id) == 12
    assert int(plain.id, 16) >= 0
    assert Experiment.from_dict(yaml.safe_load(yaml.safe_dump(plain.to_dict()))) == plain
    spellings = [
        {"model": None, "data": {}, "training": None},
        {"training": {"max_grad_norm": 1, "weight_decay": 0.1, "slope_weight_decay": 0.1}},
        {"model": {"rotary_base": 10000, "intermediate_size": 3072, "tie_word_embeddings": True, "shape": None}},
    ]
    assert {Experiment.from_dict(spelling).id for spelling in spellings} == {plain.id}


# --- what follows from other settings ---------------------------------------------------------------------------


def test_what_follows_from_other_fields():
    model = ModelSettings(hidden_size=48)
    assert (model.intermediate_size, model.tie_word_embeddings) == (192, True)
    assert ModelSettings(family="pythia").tie_word_embeddings is False
    training = TrainingSettings(batch_size=8, weight_decay=0.3)
    assert (training.micro_batch_size, training.slope_weight_decay) == (8, 0.3)
    assert Experiment.from_dict({"data": {"vocab_size": 300}}).model.vocab_size == 300
    wider = model.replace(hidden_size=96, family="pythia")
    assert (wider.intermediate_size, wider.tie_word_embeddings) == (384, False)
    assert ModelSettings(hidden_size=48, intermediate_size=100).replace(hidden_size=96).intermediate_size == 100
    fewer = training.replace(batch_size=6, weight_decay=0.0)
    assert (fewer.micro_batch_size, fewer.slope_weight_decay) == (6, 0.0)


def test_a_named_shape_fills_the_sizes_and_other_keys_override_it():
    for shape, sizes in SHAPES.items():
        model = Experiment.from_dict({"model": {"shape": shape, "norm": "none"}}).model
        assert model == ModelSettings(**sizes, norm="none", vocab_size=1024)
        assert Experiment.from_dict({"model": {"shape": shape, "num_hidden_layers": 3}}).model.num_hidden_layers == 3


def test_configurations_have_the_papers_names():
    for name, changes in {
        "SM+LN+G": {},
        "SM+R": {"norm": "none", "activation": "relu"},
        "SM+LN": {"activation": "identity"},
        "SM": {"norm": "none", "activation": "identity"},
        "SM+RMS+G(tanh)": {"norm": "rmsnorm", "activation": "gelu_tanh"},
        "SM+L(0.1)": {"norm": "none", "activation": "leaky_relu", "negative_slope": 0.1},
        "SM+LL per layer(0.01)": {"norm": "none", "activation": "learnable_leaky_relu"},
        "SM+G(s=8)": {"norm": "none", "activation": "scaled_gelu", "activation_scale": 8.0},
    }.items():
        assert ModelSettings(**changes).configuration == name
    assert len({ModelSettings(activation=name).configuration for name in ACTIVATION_LETTERS}) == len(ACTIVATION_LETTERS)


# --- where settings come from -----------------------------------------------------------------------------------


def test_override():
    values = ["training.learning_rate=1e-3", "training.steps=null", "model.norm=none", "seed=3", "name="]
    assert override({"training": {"steps": 5}, "seed": 0}, [*values, "training.compile=true"]) == {
        "training": {"steps": None, "learning_rate": 1e-3, "compile": True},
        "model": {"norm": "none"},
        "seed": 3,
        "name": None,
    }
    for text in ("1e-3", "1E-3", "1.e-3", "+1e-03", "0.001", "1.0e-3"):
        assert override({}, [f"a={text}"]) == {"a": 0.001}
    assert override({"training": None}, ["training.steps=3"]) == {"training": {"steps": 3}}


def test_override_refuses():
    for assignment, said in (
        ("training.steps", "'training.steps': overrides are written section.field=value"),
        ("=3", "'=3': overrides are written section.field=value"),
        ("seed.steps=3", "seed.steps: 'seed' is not a section of settings"),
        ("training.steps=[3", "training.steps: cannot be read"),
    ):
        with pytest.raises(SettingsError) as caught:
            override({"seed": 0}, [assignment])
        assert str(caught.value).startswith(said)
        assert "\n" not in str(caught.value)


def test_read_yaml(tmp_path):
    file = tmp_path / "a.yaml"
    for text, value in (("seed: 3", {"seed": 3}), ("", {}), ("a: &x [1]\nb: *x", {"a": [1], "b": [1]})):
        file.write_text(text)
        assert read_yaml(file) == value
    file.write_text("training: {steps: 3}\ntraining: {batch_size: 4}")
    with pytest.raises(SettingsError, match=r"a\.yaml: cannot be read \('training' is there more than once\)$"):
        read_yaml(file)
    for content in (b"seed: [1\nmodel: }", b"\xff\xfe\x00", b"- 1", b"a: 2001-13-01", b"a: !!bool x", b"[" * 1000):
        file.write_bytes(content)
        for path in (file, tmp_path, tmp_path / "absent.yaml"):
            with pytest.raises(SettingsError) as caught:
                read_yaml(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)


def test_shipped_yaml_can_be_read():
    for path in (*Path("notebooks/params").glob("*.yaml"), Path("data/claims.yaml")):
        assert read_yaml(path)


def test_project_root(monkeypatch, tmp_path):
    monkeypatch.delenv("NFCORE_ROOT", raising=False)
    assert (project_root() / "data" / "published").is_dir()
    monkeypatch.setenv("NFCORE_ROOT", str(tmp_path))
    assert project_root() == tmp_path
