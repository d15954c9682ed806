"""Corpus to token files, on corpora of a few kilobytes; nothing is downloaded."""

import base64
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore import data
from nfcore.data import END_OF_TEXT, cut, documents, overlap, prepare
from nfcore.settings import DataSettings, SettingsError


SMALL = {"vocab_size": 270, "context": 8, "validation_fraction": 0.3}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "tokens"))
    return tmp_path / "tokens"


def source(name: str) -> str:
    return "".join(f"def {name}_{i}(argument):\n    return {name} + argument * {i}\n" for i in range(6))


@pytest.fixture
def folder(tmp_path):
    """Twelve groups of two files each."""
    for group in range(12):
        for file in range(2):
            path = tmp_path / "corpus" / f"group{group}" / f"file{file}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source(f"f{group}x{file}"))
    return tmp_path / "corpus"


def settings_for(path, **changes) -> DataSettings:
    return DataSettings(corpus=str(path), **{**SMALL, **changes})


def sorted_rows(rows) -> list[list[int]]:
    return sorted(map(list, np.asarray(rows).tolist()))


def test_two_caches_hold_the_same_bytes(folder, tmp_path, monkeypatch):
    first = prepare(settings_for(folder))
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "elsewhere"))
    second = prepare(settings_for(folder))
    assert first.directory != second.directory
    assert first.hash == second.hash
    assert first.meta == second.meta
    for name in ("train.bin", "validation.bin", "tokenizer.json", "meta.json"):
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes()


def test_another_place_and_order_of_files_give_the_same_tokens(folder, tmp_path):
    copy = tmp_path / "copy"
    for path in sorted(folder.rglob("*.py"), reverse=True):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    assert prepare(settings_for(folder)).hash == prepare(settings_for(copy)).hash


@pytest.mark.parametrize("split_by", ["group", "document"])
def test_split_has_no_leak(folder, split_by):
    (folder / "group0" / "again.py").write_text((folder / "group5" / "file0.py").read_text())
    settings = settings_for(folder, split_by=split_by)
    corpus = data.local_corpus(settings)
    train, validation = set(corpus.train), set(corpus.validation)
    assert train
    assert validation
    assert not train & validation
    assert corpus.facts["duplicates"] == 1
    assert len(train) + len(validation) == 24
    group_of = {d.text: d.group for d in documents(settings)}
    if split_by == "group":
        assert not {group_of[t] for t in train} & {group_of[t] for t in validation}


def oracle(texts: list[list[int]], context: int, end_of_text: int | None) -> list[list[int]]:
    streams = texts
    if end_of_text is not None:
        joined: list[int] = []
        for text in texts:
            joined += [end_of_text, *text]
        streams = [joined[1:]]
    return [s[i : i + context] for s in streams for i in range(0, len(s) - context + 1, context)]


@given(
    texts=st.lists(st.lists(st.integers(0, 65534), max_size=40), max_size=12),
    context=st.integers(2, 9),
    end_of_text=st.none() | st.integers(0, 65534),
)
def test_cut_is_the_oracle(texts, context, end_of_text):
    pieces = list(cut(texts, context, end_of_text))
    assert all(p.dtype == np.uint16 and p.ndim == 2 and len(p) for p in pieces)
    assert [row for piece in pieces for row in piece.tolist()] == oracle(texts, context, end_of_text)


@pytest.mark.parametrize("packing", ["per-file", "packed"])
def test_token_files_are_the_oracle(folder, packing):
    settings = settings_for(folder, packing=packing)
    tokens = prepare(settings)
    tokenizer = tokens.tokenizer
    corpus = data.local_corpus(settings)
    end = tokenizer.token_to_id(END_OF_TEXT) if packing == "packed" else None
    for part in ("train", "validation"):
        ids = [tokenizer.encode(text).ids for text in getattr(corpus, part)]
        rows = getattr(tokens, part)
        assert rows.dtype == np.uint16
        assert rows.shape == (tokens.meta[part]["sequences"], 8)
        assert not rows.flags.writeable
        assert tokens.meta[part]["tokens"] == sum(map(len, ids))
        assert sorted_rows(rows) == sorted(oracle(ids, 8, end))
        if part == "train":
            assert rows.tolist() == oracle(ids, 8, end)


def test_tokenizer_gives_the_text_back_and_never_sees_validation(folder):
    tokens = prepare(settings_for(folder))
    assert tokens.tokenizer.get_vocab_size() == 270
    text = 'def é():\n\treturn "\U0001f600"\r\n'
    assert tokens.tokenizer.decode(tokens.tokenizer.encode(text).ids) == text
    train = list(data.local_corpus(settings_for(folder)).train)
    assert data.train_tokenizer(train, 270).to_str() == data.train_tokenizer(train, 270).to_str()
    assert data.train_tokenizer(train, 270).to_str(pretty=True) == (tokens.directory / "tokenizer.json").read_text()


def test_end_of_text_in_a_document_is_text(folder):
    for path in folder.rglob("*.py"):
        path.write_text(f"x = '{END_OF_TEXT}'\n" + path.read_text())
    tokens = prepare(settings_for(folder))
    assert not (tokens.train == tokens.tokenizer.token_to_id(END_OF_TEXT)).any()


def test_what_is_no_text_is_skipped_and_counted(folder, tmp_path, monkeypatch):
    (folder / "group0" / "zero.py").write_bytes(b"a\0b")
    (folder / "group0" / "latin.py").write_bytes("é".encode("latin-1"))
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (tmp_path / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "dangling.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    locked = folder / "group1" / "locked.py"
    locked.write_text("locked")
    read_bytes = Path.read_bytes

    def refuse(path):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    tokens = prepare(settings_for(folder))
    assert tokens.meta["skipped"] == {"binary": 2, "link outside": 1, "not a file": 1, "unreadable": 2}
    names = [d.name for d in documents(settings_for(folder))]
    assert names == sorted(names)
    assert len(names) == 24


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\0\0", b"\xff"])
def test_empty_or_binary_corpus_is_refused(tmp_path, content, cache):
    (tmp_path / "corpus").mkdir()
    if content is not None:
        (tmp_path / "corpus" / "a.txt").write_bytes(content)
    with pytest.raises(SettingsError, match=r"data\.corpus: .* holds no text"):
        prepare(settings_for(tmp_path / "corpus"))
    assert not cache.exists()


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"data\.corpus: .*not python-source"):
        prepare(settings_for(tmp_path / "nowhere"))


def test_records_and_text_files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [source(f"r{i}") for i in range(30)]
    lines = [json.dumps({"content": text, "other": 1}) for text in texts]
    lines += ["{broken", "", json.dumps({"content": None}), json.dumps({"content": "\ud800"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"content": texts}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(texts * 3))
    skipped: Counter[str] = Counter()
    assert [d.text for d in documents(settings_for(tmp_path / "a.jsonl"), skipped)] == texts
    assert skipped == {"malformed": 1, "not text": 2}
    assert [d.text for d in documents(settings_for(tmp_path / "a.parquet"))] == texts
    assert prepare(settings_for(tmp_path / "a.jsonl")).hash == prepare(settings_for(tmp_path / "a.parquet")).hash
    found = [d.text for d in documents(settings_for(tmp_path / "a.txt"))]
    assert "".join(found) == "\n".join(texts * 3)
    assert all(len(text) >= data.BLOCK and text.endswith("\n") for text in found[:-1])
    assert len(prepare(settings_for(tmp_path / "a.txt", validation_fraction=0.5)).validation)
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(SettingsError, match=r"data\.text_column: no 'text'"):
            prepare(settings_for(tmp_path / name, text_column="text"))
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(SettingsError, match="not a parquet file"):
        prepare(settings_for(tmp_path / "b.parquet"))


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """A package as an installer leaves it, RECORD included."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    record = ["../bin/script.py,sha256=machine,1"]
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
        found = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record.append(f"{file},sha256={found},{len(text)}")
    (info / "RECORD").write_text("\n".join(record) + "\n")


def test_python_source_is_checked_against_record(tmp_path, monkeypatch):
    files = {f"fakepkg/g{g}/m{m}.py": source(f"p{g}y{m}") for g in range(12) for m in range(2)}
    install(tmp_path / "site", "fakepkg", {**files, "fakepkg/table.py": "T = [" + "12345, " * 99 + "]\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(data, "PYTHON_SOURCE_PACKAGES", ("fakepkg",))
    settings = settings_for("python-source")
    found = list(documents(settings))
    assert {d.name: d.text for d in found} == files
    assert found[0].group == "fakepkg/g0"
    tokens = prepare(settings)
    assert tokens.meta["packages"] == {"fakepkg": "1.0"}
    assert tokens.meta["skipped"] == {"number table": 1}
    changed = tmp_path / "site" / "fakepkg" / "g3" / "m1.py"
    changed.write_text("changed")
    with pytest.raises(SettingsError, match=r"fakepkg: fakepkg/g3/m1\.py differs from the package's RECORD"):
        prepare(settings)
    changed.unlink()
    with pytest.raises(SettingsError, match=r"fakepkg/g3/m1\.py cannot be read"):
        prepare(settings)
    monkeypatch.setattr(data, "PYTHON_SOURCE_PACKAGES", ("no-such-package",))
    with pytest.raises(SettingsError, match=r"no-such-package, not installed"):
        prepare(settings)


def test_the_default_corpus_splits_sensibly():
    bytes_of: Counter[bool] = Counter()
    for document in documents(DataSettings()):
        bytes_of[data.in_validation(document.group, 0.05)] += len(document.text)
    assert 0.03 < bytes_of[True] / bytes_of.total() < 0.12
    assert bytes_of.total() > 20e6


def test_codeparrot_from_local_files(folder, tmp_path, monkeypatch):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    made = prepare(settings_for(folder))
    texts = [source(f"c{i}") for i in range(40)]
    pq.write_table(pa.table({"content": texts, "license": ["mit"] * 40}), tmp_path / "train.parquet")
    (tmp_path / "valid.jsonl").write_text("\n".join(json.dumps({"content": t}) for t in texts[:10]))
    settings = settings_for(
        "codeparrot",
        tokenizer=str(made.directory),
        train_files=str(tmp_path / "train.parquet"),
        validation_files=str(tmp_path / "valid.jsonl"),
        max_documents=20,
        max_validation_documents=50,
    )
    tokens = prepare(settings)
    loaded = datasets.load_dataset("parquet", data_files=settings.train_files, split="train")
    first = loaded.shuffle(seed=0).select(range(20))["content"]
    ids = [made.tokenizer.encode(text).ids for text in first]
    assert tokens.train.tolist() == oracle(ids, 8, None)
    assert tokens.meta["train"]["documents"] == 20
    assert tokens.meta["validation"]["documents"] == 10
    before = (tokens.directory / "train.bin").stat().st_mtime_ns
    assert prepare(settings).directory == tokens.directory
    assert (tokens.directory / "train.bin").stat().st_mtime_ns == before
    with pytest.raises(SettingsError, match=r"data\.text_column: no 'text'"):
        prepare(DataSettings(**{**vars(settings), "text_column": "text"}))
    with pytest.raises(SettingsError, match=r"cannot be loaded .*data\.train_files"):
        prepare(DataSettings(**{**vars(settings), "train_files": str(tmp_path / "absent.parquet")}))


def test_codeparrot_without_a_network_says_what_to_do(tmp_path):
    code = """
from nfcore.data import prepare
from nfcore.settings import DataSettings, SettingsError
try:
    prepare(DataSettings(corpus="codeparrot", vocab_size=50000))
except SettingsError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for part in ("huggingface-course/codeparrot-ds-train", "HF_HOME", "data.train_files", "data.tokenizer"):
        assert part in done.stdout
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "tokens").exists()


def test_changed_token_files_are_refused(folder):
    tokens = prepare(settings_for(folder))
    path = tokens.directory / "train.bin"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    prepare(settings_for(folder))
    with pytest.raises(SettingsError, match=r"train\.bin: differs from the recorded SHA-256"):
        prepare(settings_for(folder), verify=True)
    path.write_bytes(content[:-2])
    with pytest.raises(SettingsError, match=r"train\.bin: \d+ bytes, recorded were \d+"):
        prepare(settings_for(folder))
    path.unlink()
    with pytest.raises(SettingsError, match="incomplete or unreadable"):
        prepare(settings_for(folder))
    (tokens.directory / "meta.json").write_text("[]")
    with pytest.raises(SettingsError, match="incomplete or unreadable"):
        prepare(settings_for(folder))


def test_existing_tokens_are_reused(folder):
    tokens = prepare(settings_for(folder))
    before = {path: path.stat().st_mtime_ns for path in tokens.directory.iterdir()}
    again = prepare(settings_for(folder), verify=True)
    assert {path: path.stat().st_mtime_ns for path in again.directory.iterdir()} == before
    (folder / "group0" / "file0.py").write_text(source("other"))
    assert prepare(settings_for(folder)).directory != tokens.directory


def test_two_at_once_end_well(folder, cache):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [settings_for(folder)] * 2)
    assert first.hash == second.hash
    assert [path.name for path in cache.iterdir()] == [first.directory.name]


def test_loser_of_a_race_uses_the_winner(folder, monkeypatch):
    winner = prepare(settings_for(folder))
    exists = Path.exists
    asked = []

    def absent_at_first(path, **options):
        asked.append(path)
        return exists(path, **options) and not (path == winner.directory and asked.count(path) == 1)

    monkeypatch.setattr(Path, "exists", absent_at_first)
    assert prepare(settings_for(folder)).hash == winner.hash
    assert asked.count(winner.directory) == 2
    assert [path.name for path in winner.directory.parent.iterdir()] == [winner.directory.name]


def test_full_disk_leaves_nothing(folder, cache, monkeypatch):
    def full(path, context):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data, "order_by_hash", full)
    with pytest.raises(SettingsError, match=r"cannot be written \(No space left on device\)"):
        prepare(settings_for(folder))
    assert list(cache.iterdir()) == []


def test_wrong_vocabularies_are_refused(folder, tmp_path):
    made = prepare(settings_for(folder))
    path = str(made.directory / "tokenizer.json")
    assert prepare(settings_for(folder, tokenizer=path)).hash == made.hash
    with pytest.raises(SettingsError, match=r"data\.vocab_size: 269 differs from the 270 tokens"):
        prepare(settings_for(folder, tokenizer=path, vocab_size=269))
    with pytest.raises(SettingsError, match=r"data\.vocab_size: the training part reaches \d+ of 60000"):
        prepare(settings_for(folder, vocab_size=60000))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"the tokenizer .*broken\.json cannot be loaded"):
        prepare(settings_for(folder, tokenizer=str(tmp_path / "broken.json")))


@pytest.mark.parametrize(("fraction", "part"), [(1e-9, "validation"), (1 - 1e-9, "train")])
def test_a_part_without_sequences_is_refused(folder, fraction, part):
    made = prepare(settings_for(folder))
    settings = settings_for(folder, validation_fraction=fraction, tokenizer=str(made.directory))
    with pytest.raises(SettingsError, match=rf"the {part} part .* gives no sequence"):
        prepare(settings)


def test_overlap_is_a_share_of_distinct_lines():
    train = ["a line that both of them have\nshort\n"]
    validation = ["  a line that both of them have\nshort\nnobody else has got this line\n"] * 2
    assert overlap(train, validation) == 0.5
    assert overlap(train, ["short"]) == 0.0


def test_overlap_of_many_lines_is_that_of_a_sample():
    lines = [f"line {i} of a long text" for i in range(40000)]
    exact = overlap(["\n".join(lines[::4])], lines)
    assert exact == 0.25
    assert overlap(["\n".join(lines[::4])], lines, most=5000) == pytest.approx(exact, abs=0.04)


def test_a_full_disk_for_the_spool_is_named(folder, monkeypatch):
    monkeypatch.setattr(data.tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(SettingsError, match=r"No space left on device; set TMPDIR"):
        data.local_corpus(settings_for(folder))


def test_batches_have_their_ids_as_labels(folder):
    import torch

    tokens = prepare(settings_for(folder))
    items = data.Sequences(tokens.train)
    assert len(items) == len(tokens.train)
    batch = data.collate([items[0], items[1]])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["labels"].tolist() == tokens.train[:2].tolist()


def test_importing_data_is_light():
    heavy = ("torch", "transformers", "datasets", "tokenizers")
    code = f"import sys, nfcore.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
