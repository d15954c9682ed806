"""Whatever the input, only the errors that are documented: settings, records, corpora, token files, attention.

The short form has some hundred cases. ``NFCORE_FUZZ_CASES=10000`` in the environment tries that many, shared out as in
the short form; ``NFCORE_TORTURE_LOG`` names a file for their counts (:mod:`tests.counting`).
"""

import gzip
import io
import json
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nfcore import NormFreeConfig, NormFreeForCausalLM, attention_entropy, attention_statistics, runs
from nfcore.corpus import documents, local_corpus, texts_of
from nfcore.formats import LONGEST
from nfcore.settings import (
    REGISTERED,
    DataSettings,
    Experiment,
    ModelSettings,
    SettingsError,
    TrainingSettings,
    override,
    read_yaml,
)
from nfcore.store import file_sha256, verify
from nfcore.tokens import load_tokenizer, prepare
from tests.counting import counted


SHORT = {"settings": 60, "overrides": 40, "yaml": 60, "records": 40, "tables": 12, "corpora": 60, "tokenising": 6}
SHORT |= {"tokenizers": 20, "tokens": 30, "archives": 20, "attention": 100, "models": 12}
CASES = int(os.environ.get("NFCORE_FUZZ_CASES", "0"))


def fuzz(kind: str, strategy: st.SearchStrategy[Any] | None = None) -> Callable[[Callable[[Any], None]], None]:
    """Call the function below at once on as many drawn inputs as the form has of this kind; it may draw them itself."""
    examples = max(SHORT[kind], math.ceil(CASES * SHORT[kind] / sum(SHORT.values())))
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    profile = hypothesis_settings(max_examples=examples, deadline=None, database=None, suppress_health_check=slow)
    if not CASES:
        phases = [Phase.explicit, Phase.generate, Phase.shrink]
        profile = hypothesis_settings(profile, phases=phases, derandomize=True)  # the suite draws the same each time

    def run(check: Callable[[Any], None]) -> None:
        with counted(kind) as count:

            def case(drawn: Any) -> None:
                count["cases"] += 1
                check(drawn)

            profile(given(st.data() if strategy is None else strategy)(case))()

    return run


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """The result; None where the input is refused, in one line of a length that can be read and printed."""
    try:
        return function(*args)
    except SettingsError as error:
        message = str(error)
        assert 0 < len(message) < 4000
        message.encode("utf-8", "surrogateescape")
        return None


# --- settings ---------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=8) | st.text(st.characters(codec=None), max_size=4)  # surrogates too
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([2**63, -(10**400)])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
SECTIONS = {"model": ModelSettings, "data": DataSettings, "training": TrainingSettings}


def allowed(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a field with this JSON schema takes."""
    if "anyOf" in schema:
        return st.one_of(*map(allowed, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer":
        return st.integers(low if above is None else above + 1, 2**40 if high is None else high)
    if schema["type"] == "number":
        bounds = {"min_value": low if above is None else above, "max_value": high if below is None else below}
        ends = {"exclude_min": above is not None, "exclude_max": below is not None}
        return st.floats(**bounds, **ends, allow_nan=False, allow_infinity=False)
    if schema["type"] == "array":
        return st.lists(allowed(schema["items"]), min_size=1, max_size=8)
    return {"boolean": st.booleans(), "null": st.none(), "string": st.text(min_size=1, max_size=8)}[schema["type"]]


def section(cls: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of it, each with a value that it takes alone."""
    schemas = cls.model_json_schema()["properties"].items()
    fields = {
        name: st.sampled_from([*REGISTERED[name]]) if name in REGISTERED else allowed(schema)
        for name, schema in schemas
    }
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def valid(draw: Any) -> dict[str, Any]:
    """Settings of a run, made to agree where several fields must."""
    model, data, training = (draw(section(cls)) for cls in SECTIONS.values())
    model["vocab_size"] = data.get("vocab_size", 1024)
    model["num_hidden_layers"] = len(model.get("attention_scales") or []) or model.get("num_hidden_layers", 12)
    model["hidden_size"] = model.get("num_attention_heads", 12) * draw(st.integers(1, 64))
    model["max_position_embeddings"] = data.get("context", 128) + draw(st.integers(0, 64))
    training["batch_size"] = (training.get("micro_batch_size") or 1) * draw(st.integers(1, 64))
    training["final_learning_rate"] = training.get("learning_rate", 1e-3) * draw(st.floats(0, 1))
    files = draw(st.booleans())
    data |= {"train_files": "a" if files else None, "validation_files": "b" if files else None}
    if files or data.get("streaming"):
        data["corpus"] = "codeparrot"
    return {"model": model, "data": data, "training": training, "seed": draw(st.integers(0, 2**32 - 1))}


def test_valid_settings_are_taken():
    @fuzz("settings", valid())
    def check(mapping):
        made = Experiment.from_dict(mapping)
        for name, part in mapping.items():
            if name != "seed":
                kept = getattr(made, name).to_dict()
                assert all(kept[key] == value for key, value in part.items() if value is not None)
        again = Experiment.from_dict(yaml.safe_load(yaml.safe_dump(made.to_dict())))
        assert again == made
        assert again.id == made.id
        assert made.model.configuration.startswith("SM")


def test_settings_with_a_wrong_value_are_refused():
    """Anything at all in the place of one field of valid settings is kept, or refused by the name of the field."""
    fields = st.sampled_from([(name, field) for name, cls in SECTIONS.items() for field in cls.model_fields])

    @fuzz("settings", st.tuples(valid(), fields, VALUES))
    def check(drawn):
        mapping, (section, field), value = drawn
        mapping[section][field] = value
        try:
            found = getattr(getattr(Experiment.from_dict(mapping), section), field)
        except SettingsError as error:
            message = str(error)
        else:
            assert value is None or (found == value and isinstance(found, bool) == isinstance(value, bool))
            return
        assert f"{section}.{field}" in message
        assert len(message) < 4000


def test_anything_else_is_no_settings():
    @fuzz("settings", VALUES)
    def check(value):
        assert attempt(Experiment.from_dict, value) is None or isinstance(value, dict)


def test_overrides_are_taken_or_refused():
    keys = st.sampled_from(["seed", "name", "model.norm", "training.steps", "data.corpus", "model", "data.corpus.x"])
    values = TEXT | st.sampled_from(["[", "*a", "&a [*a]", "1e400", "!!bool x", "1_000", "2001-13-01"])
    joined = st.tuples(keys | st.text(max_size=8), values).map("=".join)

    @fuzz("overrides", st.lists(joined | TEXT, max_size=3))
    def check(assignments):
        if (mapping := attempt(override, {"seed": 1, "model": {"norm": "none"}}, assignments)) is not None:
            attempt(Experiment.from_dict, mapping)


def test_yaml_files_are_read_or_refused(tmp_path):
    pieces = ["a: ", "- ", "\n", " ", "  ", *"[]{}|'\"#\t\0~", "&x ", "*x", "<<: ", "!!", "!!python/object:os.system "]
    pieces += ["\\ud800", "? ", ": ", "---\n", "%YAML 9.9\n", "1:60", "0o7", "2001-01-01"]
    soup = st.lists(st.sampled_from(pieces) | TEXT, max_size=30).map(
        lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
    )
    path = tmp_path / "a.yaml"

    @fuzz("yaml", soup | soup | st.binary(max_size=200))
    def check(content):
        path.write_bytes(content)
        found = attempt(read_yaml, path)
        assert found is None or isinstance(found, dict)
        if found is not None:
            attempt(Experiment.from_dict, found)


# --- records ----------------------------------------------------------------------------------------------------


def changed(draw: Any, value: Any) -> Any:
    """A JSON value with one place of it taken out or replaced."""
    path: list[Any] = []
    inner = value
    while isinstance(inner, (dict, list)) and inner and (not path or draw(st.integers(0, 3))):
        path.append(draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner)))))
        inner = inner[path[-1]]
    result = json.loads(json.dumps(value))
    target = result
    for key in path[:-1]:
        target = target[key]
    if draw(st.booleans()):
        del target[path[-1]]
    else:
        target[path[-1]] = draw(VALUES)
    return result


def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with some of them cut off, flipped, or put in."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    how = draw(st.sampled_from(["cut", "flip", "insert", "other"]))
    if how == "other":
        return draw(st.binary(max_size=64))
    after = content[at + 1 :] if how == "flip" else b"" if how == "cut" else content[at:]
    put = bytes([content[at] ^ draw(st.integers(1, 255))]) if how == "flip" and content else b""
    return content[:at] + (draw(st.binary(max_size=8)) if how == "insert" else put) + after


def spoilt(draw: Any, value: Any) -> bytes:
    """A JSON file with a wrong value, or with wrong bytes."""
    return (
        json.dumps(changed(draw, value)).encode() if draw(st.booleans()) else damaged(draw, json.dumps(value).encode())
    )


def test_records_are_read_or_refused(tmp_path):
    recorded = Path("data/recorded/quick")
    record = json.loads((recorded / "records.json").read_text())[0]
    directory = tmp_path / record["id"]
    directory.mkdir()
    for name in runs.TABLES:
        table = pq.read_table(recorded / f"{name}.parquet", filters=[("run", "==", record["id"])])
        pq.write_table(table.drop_columns("run"), directory / f"{name}.parquet")
    record["files"] = {path.name: file_sha256(path) for path in directory.iterdir()}

    @fuzz("records")
    def check(data):
        (directory / "record.json").write_bytes(spoilt(data.draw, record))
        found = attempt(runs.read_record, directory)
        if found is not None:
            attempt(verify, directory, found)
            attempt(runs.load_runs, tmp_path)


def test_recorded_tables_are_read_or_refused(tmp_path):
    for path in Path("data/recorded/quick").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    expected = attempt(runs.load_runs, tmp_path)

    @fuzz("tables")
    def check(data):
        path = data.draw(st.sampled_from(sorted(path for path in whole if path.name != "ro-crate-metadata.json")))
        content = damaged(data.draw, whole[path])
        path.write_bytes(content)
        found = attempt(runs.load_runs, tmp_path)
        path.write_bytes(whole[path])
        assert found is None or content == whole[path] or path.name == "checksums.json"
        assert found is None or found.runs.equals(expected.runs)


# --- corpora and tokens -----------------------------------------------------------------------------------------

LINES = st.lists(st.text(max_size=30) | st.sampled_from(["def f(x):", "    return x", "\r", "\0", "\x85"]), max_size=20)
BOMB = gzip.compress(bytes(2**22))


def parquet(texts: list[Any]) -> bytes:
    file = io.BytesIO()
    try:
        pq.write_table(pa.table({"content": texts}), file)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
        return b"PAR1"
    return file.getvalue()


@st.composite
def contents(draw: Any) -> bytes:
    """What a file may hold: text, records, what is neither, and any of it damaged."""
    made = draw(
        st.one_of(
            st.binary(max_size=300),
            LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
            st.lists(VALUES, max_size=6).map(records),
            st.lists(st.text(max_size=50) | SCALARS, max_size=4).map(parquet),
            st.sampled_from([b"", BOMB, b"\0", b"[" * 10**5, b"\xef\xbb\xbfx\n", b"x" * (LONGEST + 5), b"\n" * 10**5]),
        )
    )
    return damaged(draw, made) if draw(st.integers(0, 3)) == 0 else made


def records(values: list[Any]) -> bytes:
    lines = []
    for value in values:
        try:
            lines.append(json.dumps(value if isinstance(value, dict) else {"content": value}))
        except ValueError:  # too many digits
            lines.append("9" * 5000)
    return "\n".join(lines).encode()


NAMES = ["a.txt", "b.jsonl", "c.parquet", "d.JSON", "e.gz", "f.py", "g.csv", "h.arrow", "i.zip"]


def one_corpus(data: st.DataObject, place: Path) -> Path:
    """A file, or a folder of files, links and a pipe."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if data.draw(st.booleans()):
        path = place / data.draw(st.sampled_from(NAMES))
        path.write_bytes(data.draw(contents()))
        return path
    for number in range(data.draw(st.integers(0, 4))):
        folder = place / "root" / f"group{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}{data.draw(st.sampled_from(NAMES))}"
        kind = data.draw(st.sampled_from(["file", "file", "file", "loop", "up", "outside", "pipe", "name"]))
        if kind == "file":
            path.write_bytes(data.draw(contents()))
        elif kind == "name":
            os.symlink(b"x", os.fsencode(folder) + b"/\xff" + bytes([65 + number]))
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"loop": path, "up": place / "root", "outside": Path("/etc/passwd")}[kind])
    return place / "root"


def test_corpora_are_read_or_refused(tmp_path):
    @fuzz("corpora")
    def check(data):
        path = one_corpus(data, tmp_path / "corpus")
        settings = DataSettings(corpus=str(path), split_by=data.draw(st.sampled_from(["group", "document"])))
        skipped: Counter[str] = Counter()
        found = attempt(lambda: [*documents(settings, skipped)]) or []
        assert all(len(d.text) <= LONGEST and "root:" not in d.text for d in found)
        assert all(count >= 0 for count in skipped.values())
        corpus = attempt(local_corpus, settings)
        if corpus:
            shutil.rmtree(tmp_path / "arrow", ignore_errors=True)
            texts = [text for part in corpus.load(tmp_path / "arrow").values() for text in texts_of(part)]
            assert sorted(texts) == sorted({d.text for d in found})
        else:
            assert skipped["malformed"] + skipped["not text"] >= len(found)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "tokens"))
    return tmp_path / "tokens"


def test_corpora_are_tokenised_or_refused(tmp_path, cache):
    @fuzz("tokenising")
    def check(data):
        path = one_corpus(data, tmp_path / "corpus")
        packing = data.draw(st.sampled_from(["per-file", "packed"]))
        options = dict(vocab_size=257, context=2, validation_fraction=0.5, split_by="document", packing=packing)
        tokens = attempt(prepare, DataSettings(corpus=str(path), **options))
        assert tokens is None or tokens.train.max() < 257
        if cache.exists():
            assert not [p for p in cache.iterdir() if p.name.endswith(".unfinished")]


def test_tokenizers_are_loaded_or_refused(tmp_path, tiny):
    whole = json.loads((prepare(tiny().data).directory / "tokenizer.json").read_text())

    @fuzz("tokenizers")
    def check(data):
        (tmp_path / "tokenizer.json").write_bytes(spoilt(data.draw, whole))
        found = attempt(load_tokenizer, str(tmp_path), 300)
        assert found is None or max(found[0].get_vocab().values()) < 300


def test_token_files_are_whole_or_refused(tiny, cache):
    tokens = prepare(tiny().data)
    whole = {path: path.read_bytes() for path in tokens.directory.iterdir()}
    train = tokens.train.tolist()

    @fuzz("tokens")
    def check(data):
        path = data.draw(st.sampled_from(sorted(whole)))
        content = damaged(data.draw, whole[path])
        path.write_bytes(content)
        found = attempt(prepare, tiny().data)
        path.write_bytes(whole[path])
        if found is not None:
            assert content == whole[path] if path.name != "meta.json" else found.meta == tokens.meta
            assert found.train.tolist() == train


def test_archives_stay_in_their_folder(tmp_path):
    from tools.gpu import unpack

    names = st.sampled_from(["a", "a/b", "../evil", "/evil", "a/../../evil", "..", "", ".", "a/", "x" * 300, "\udcff"])
    kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
    entry = st.tuples(names, kinds, names)

    @fuzz("archives")
    def check(data):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        (place / "out").mkdir(parents=True)
        packed = place / "a.tar.xz"
        with tarfile.open(packed, "w:xz") as tar:
            for name, kind, link in data.draw(st.lists(entry, max_size=4)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(b"abc"))
        if data.draw(st.integers(0, 2)) == 0:
            packed.write_bytes(damaged(data.draw, packed.read_bytes()))
        with suppress(OSError):  # of a file system: a name that is too long, or of a file and of a folder
            attempt(unpack, packed, place / "out" / "folder")
        assert {path.name for path in place.iterdir()} == {"out", "a.tar.xz"}
        assert {path.name for path in (place / "out").iterdir()} <= {"folder"}
        for path in (place / "out").rglob("*"):
            assert Path(os.path.realpath(path)).is_relative_to(place / "out")


# --- attention --------------------------------------------------------------------------------------------------

EDGES = [0.0, -0.0, 1.0, 1e-45, 3e38, -3e38, 65504.0, 1e20, math.inf, -math.inf, math.nan]


@st.composite
def tensors(draw: Any, shape: tuple[int, ...]) -> torch.Tensor:
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    size = draw(st.sampled_from([0.0, 1.0, 1e-20, 100.0, 1e4, 1e18]))
    x = size * torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if x.numel():
        for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(EDGES))
    return x.to(dtype)


def test_attention_entropy_is_in_its_range_or_refused():
    sizes = st.integers(0, 4) | st.integers(1, 4)

    @fuzz("attention")
    def check(data):
        batch, heads, width = (data.draw(sizes) for _ in range(3))
        shape = (batch, heads, data.draw(sizes | st.just(20)), width)
        others = (data.draw(st.just(batch) | sizes), data.draw(st.just(heads) | st.just(1) | sizes))
        key_shape = (*others, data.draw(st.just(shape[2]) | sizes), data.draw(st.just(width) | sizes))
        if data.draw(st.integers(0, 9)) == 0:
            shape = shape[1:]
        q, k = data.draw(tensors(shape)), data.draw(tensors(key_shape))
        if data.draw(st.integers(0, 9)) == 0:
            k = k.long()
        causal = data.draw(st.booleans())
        scale = data.draw(st.none() | st.sampled_from([0.0, -1.0, 1.0, 1e-30, 1e30, math.nan, math.inf]))
        method = data.draw(st.sampled_from(["auto", "exact", "chunked", "lse", "fast"]))
        rows = attempt(lambda: attention_entropy(q, k, scale=scale, causal=causal, method=method))
        fits = len(shape) == 4 and batch == others[0] and width == key_shape[3] and q.numel() and k.numel()
        fits = fits and heads % max(1, others[1]) == 0 and (not causal or shape[2] == key_shape[2])
        assert (rows is not None) == bool(fits and k.is_floating_point() and method != "fast")
        if rows is None:
            return
        assert rows.shape == q.shape[:3]
        keys = key_shape[2]
        highest = torch.arange(1, keys + 1).log() if causal else torch.tensor(math.log(keys))
        finite = rows.isfinite()
        assert not rows.isinf().any()
        # What float32 rounds is a share of the scores' terms, of keys that a row does not see too; see test_entropy.
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        k_all = k.double().repeat_interleave(heads // others[1], 1).transpose(-1, -2)
        terms = abs(factor) * q.double().abs() @ k_all.abs()
        slack = 2e-5 + 3e-6 * terms.amax(-1).nan_to_num(0, 0, 0)
        assert (rows >= -1e-6)[finite].all()
        assert (rows <= highest + slack)[finite].all()
        allowed = torch.ones(shape[2], keys, dtype=torch.bool).tril(0 if causal else keys)
        scores = (factor * q.double() @ k_all).masked_fill(~allowed, 0)
        assert not finite[~scores.isfinite().all(-1)].any()  # a score that is no number makes its row NaN
        if 1e-20 < abs(factor) < 1e20:
            ordinary = (terms.amax(-1) < 1e4) & bool((q.abs().amax() < 1e18) & (k.abs().amax() < 1e18))
            exact = attention_entropy(q, k, scale=scale, causal=causal, method="exact")
            assert ((rows - exact).abs() <= slack)[ordinary].all()


def test_statistics_of_any_weights_are_in_their_range():
    config = NormFreeConfig.from_shape("gpt2-2x32", norm="none", vocab_size=97, max_position_embeddings=16)
    model = NormFreeForCausalLM(config).eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    @fuzz("models")
    def check(data):
        length, batch = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 3))
        name = data.draw(st.sampled_from(sorted(before)))
        with torch.no_grad():
            for key, p in model.named_parameters():
                p.copy_(before[key])
            changed = dict(model.named_parameters())[name]
            changed.mul_(data.draw(st.sampled_from([0.0, 1.0, 1e3, 1e10, -1.0])))
            if data.draw(st.booleans()):
                changed.view(-1)[data.draw(st.integers(0, changed.numel() - 1))] = data.draw(st.sampled_from(EDGES))
        ids = torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
        found = attention_statistics(model, ids)
        highest = torch.arange(1, length + 1).log()
        entropy, by_position, bad = found["entropy"], found["by_position"], found["nonfinite_rows"]
        assert ((bad >= 0) & (bad <= batch * length)).all()
        assert (entropy.isnan() == (bad == batch * length)).all()
        assert (entropy[entropy.isfinite()] >= -1e-6).all()
        assert not by_position.isinf().any()
        assert (by_position.nan_to_num(0) <= highest + 1e-3).all()
        clean = bad == 0
        assert (entropy[clean] <= highest.mean() + 1e-3).all()
        assert found["largest_logit"][clean].isfinite().all()
