"""Corpus to token files, on corpora of a few kilobytes; nothing is downloaded."""

import base64
import errno
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nfcore.data import END_OF_TEXT, Overlap, documents, prepare

from nfcore import data
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


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


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


class Numbers:
    """A tokenizer whose texts are numbers."""

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        assert not add_special_tokens
        return [SimpleNamespace(ids=[int(number) for number in text.split()]) for text in texts]


@given(
    texts=st.lists(st.lists(st.integers(0, 65535), max_size=40), min_size=1, max_size=12),
    context=st.integers(2, 9),
    end_of_text=st.none() | st.integers(0, 65535),
    size=st.integers(1, 12),
    dtype=st.sampled_from(["<u2", "<u4"]),
)
def test_batches_of_any_size_are_the_oracle(texts, context, end_of_text, size, dtype):
    words = [" ".join(map(str, text)) for text in texts]
    found, tokens = b"", 0
    for start in range(0, len(texts), size):
        batch = words[start : start + size]
        data_of_batch, count = data.token_ids(Numbers(), context, end_of_text, dtype, batch, start == 0)  # type: ignore[arg-type]
        found, tokens = found + data_of_batch, tokens + count
    ids = np.frombuffer(found, dtype=dtype)
    rows = ids[: len(ids) // context * context].reshape(-1, context)
    assert rows.tolist() == oracle(texts, context, end_of_text)
    assert tokens == sum(map(len, texts))


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
    (folder / "loop").symlink_to(folder / "pool")
    (folder / "pool").symlink_to(folder / "loop")
    (folder / "up").symlink_to(folder, target_is_directory=True)
    (folder / "packed.gz").write_bytes(gzip.compress(bytes(10**6)))
    locked = folder / "group1" / "locked.py"
    locked.write_text("locked")
    open_path = Path.open

    def refuse(path, *args, **options):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_path(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    tokens = prepare(settings_for(folder))
    assert tokens.meta["skipped"] == {"binary": 3, "link outside": 1, "not a file": 1, "unreadable": 4}
    names = [d.name for d in documents(settings_for(folder))]
    assert names == sorted(names)
    assert len(names) == 24


def test_an_empty_file_is_an_empty_document_and_a_name_need_not_be_utf8(folder):
    before = prepare(settings_for(folder))
    (folder / "empty.py").touch()
    os.rename(folder / "group3", os.fsencode(folder) + b"/gr\xff\xfe")
    found = prepare(settings_for(folder))
    parts = [found.meta[part]["documents"] for part in ("train", "validation")]
    assert sum(parts) == 25
    assert found.directory != before.directory


@pytest.mark.parametrize("name", ["long.txt", "folder", "long.jsonl"])
def test_long_lines_are_cut_and_long_records_left_out(tmp_path, monkeypatch, name):
    monkeypatch.setattr(data, "LONGEST", 10_000)
    monkeypatch.setattr(data, "BLOCK", 100)
    short, long = "a line\n" * 40, "é" * 24_000 + "\n"
    path = tmp_path / name
    skipped: Counter[str] = Counter()
    if name == "long.jsonl":
        path.write_text("".join(json.dumps({"content": text}) + "\n" for text in (short, long, short + "end")))
        texts = [d.text for d in documents(settings_for(path), skipped)]
        assert texts == [short, short + "end"]
        assert skipped == {"too long": 1}
        return
    if name == "folder":
        path.mkdir()
    (path / "a.txt" if name == "folder" else path).write_text(short + long + short)
    texts = [d.text for d in documents(settings_for(path), skipped)]
    assert "".join(texts) == short + long + short
    assert max(map(len, texts)) <= 10_000
    assert len(texts) > (6 if name == "long.txt" else 2)
    assert not skipped


def test_a_file_that_is_no_text_is_said_to_be(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"text\n" * 2**20 + b"\xff")
    with pytest.raises(SettingsError, match=r"holds no text \(0 documents; skipped: 1 binary\)"):
        prepare(settings_for(tmp_path / "a.txt"))


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
    lines += ["{broken", "", json.dumps({"content": None}), json.dumps({"content": "\ud800"}), "[" * 10**5]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"content": texts}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(texts * 3))
    skipped: Counter[str] = Counter()
    assert [d.text for d in documents(settings_for(tmp_path / "a.jsonl"), skipped)] == texts
    assert skipped == {"malformed": 2, "not text": 2}
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
    pq.write_table(pa.table({"content": [1, 2, 3]}), tmp_path / "train.parquet")
    with pytest.raises(SettingsError, match=r"data\.text_column: 'content' of .*train\.parquet is not text: \d"):
        prepare(settings)


def test_codeparrot_streamed(folder, tmp_path, monkeypatch):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(data, "SHUFFLE_WINDOW", 5)
    made = prepare(settings_for(folder))
    texts = [source(f"c{i}") for i in range(40)]
    pq.write_table(pa.table({"content": texts}), tmp_path / "train.parquet")
    (tmp_path / "valid.jsonl").write_text("\n".join(json.dumps({"content": t}) for t in texts[:10]))
    settings = settings_for(
        "codeparrot",
        tokenizer=str(made.directory),
        train_files=str(tmp_path / "train.parquet"),
        validation_files=str(tmp_path / "valid.jsonl"),
        max_documents=20,
        streaming=True,
    )
    tokens = prepare(settings)
    ids = [made.tokenizer.encode(text).ids for text in texts]
    found = tokens.train.tolist()
    streamed = [i for i, document in enumerate(ids) if oracle([document], 8, None)[0] in found]
    assert len(streamed) == tokens.meta["train"]["documents"] == 20
    assert max(streamed) < 25  # not from the whole: within the window
    assert tokens.meta["validation"]["documents"] == 10
    assert not [*(tmp_path / "hf").rglob("*.arrow")]  # no copy of the data set
    assert prepare(settings).directory == tokens.directory
    assert prepare(DataSettings(**{**vars(settings), "streaming": False})).hash != tokens.hash
    with pytest.raises(SettingsError, match=r"data\.text_column: no 'text'"):
        prepare(DataSettings(**{**vars(settings), "text_column": "text"}))
    (tmp_path / "valid.jsonl").write_text('{"content": "a"}\n{"content"')
    with pytest.raises(SettingsError, match=r"valid\.jsonl cannot be loaded"):
        prepare(settings)


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


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "meta.json"])
def test_a_flipped_bit_is_named(folder, name):
    path = prepare(settings_for(folder)).directory / name
    content = path.read_bytes()
    for place in (0, len(content) // 3, len(content) - 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(
            SettingsError, match=rf"({name}: differs from|incomplete or unreadable).*delete the directory"
        ):
            prepare(settings_for(folder))
    path.write_bytes(content)
    prepare(settings_for(folder))


def test_changed_token_files_are_refused(folder):
    tokens = prepare(settings_for(folder))
    path = tokens.directory / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(SettingsError, match=r"train\.bin: \d+ bytes, recorded were \d+"):
        prepare(settings_for(folder))
    path.unlink()
    with pytest.raises(SettingsError, match="incomplete or unreadable"):
        prepare(settings_for(folder))
    for meta in (b"[]", b"", b"\xff", b'{"train": ' + b"9" * 5000 + b"}", b"[" * 10**5):
        (tokens.directory / "meta.json").write_bytes(meta)
        with pytest.raises(SettingsError, match="incomplete or unreadable"):
            prepare(settings_for(folder))


def test_tokens_of_before_have_no_dtype_and_no_hash_of_their_record(folder):
    tokens = prepare(settings_for(folder))
    meta = {key: value for key, value in tokens.meta.items() if key not in ("dtype", "meta_hash")}
    (tokens.directory / "meta.json").write_text(json.dumps(meta))
    again = prepare(settings_for(folder))
    assert again.hash == tokens.hash
    assert np.array_equal(again.train, tokens.train)


def test_existing_tokens_are_reused(folder):
    tokens = prepare(settings_for(folder))
    before = {path: path.stat().st_mtime_ns for path in tokens.directory.iterdir()}
    again = prepare(settings_for(folder))
    assert {path: path.stat().st_mtime_ns for path in again.directory.iterdir()} == before
    (folder / "group0" / "file0.py").write_text(source("other"))
    assert prepare(settings_for(folder)).directory != tokens.directory


def test_two_at_once_end_well(folder, cache, capsys, monkeypatch):
    write = data.write

    def slow(*args):
        time.sleep(0.3)
        write(*args)

    monkeypatch.setattr(data, "write", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [settings_for(folder)] * 2)
    assert first.hash == second.hash
    assert visible(cache) == [first.directory.name]
    assert capsys.readouterr().err.count("waits for another process that makes it") == 1


class Killed(BaseException):
    """In the place of SIGKILL."""


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(data, "BATCH_TEXT", 500)


@pytest.fixture
def killed_after(monkeypatch):
    """``killed_after(n)``: the process ends in the middle of writing its n-th batch; ``killed_after(None)`` never."""
    add = data.GrowingFile.add

    def killed(batches: int | None) -> None:
        left = batches

        def dying(file, *args):
            nonlocal left
            if left == 0:
                file.file.write(args[1][: len(args[1]) // 2])
                file.journal.write('{"texts": "')
                raise Killed
            left = None if left is None else left - 1
            add(file, *args)

        monkeypatch.setattr(data.GrowingFile, "add", dying)

    return killed


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("packing", ["per-file", "packed"])
def test_an_interrupted_tokenising_goes_on(folder, cache, tmp_path, monkeypatch, killed_after, packing):
    settings = settings_for(folder, packing=packing)
    whole = prepare(settings)
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "again"))
    made: list[int] = []
    token_ids = data.token_ids
    monkeypatch.setattr(data, "token_ids", lambda *args: made.append(len(args[4])) or token_ids(*args))
    for batches in (0, 1, 3, 2):
        killed_after(batches)
        with pytest.raises(Killed):
            prepare(settings)
        assert visible(tmp_path / "again") == []
    killed_after(None)
    again = prepare(settings)
    assert again.meta == whole.meta
    for name in ("train.bin", "validation.bin", "tokenizer.json", "meta.json"):
        assert (again.directory / name).read_bytes() == (whole.directory / name).read_bytes()
    assert visible(again.directory) == ["meta.json", "tokenizer.json", "train.bin", "validation.bin"]
    assert [path.name for path in again.directory.parent.iterdir()] == [again.directory.name]
    assert sum(made) < 5 * sum(whole.meta[part]["documents"] for part in ("train", "validation")) / 2


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("damage", ["tokens", "journal", "texts", "ordered"])
def test_what_is_damaged_is_made_again(folder, tmp_path, monkeypatch, killed_after, damage):
    whole = prepare(settings_for(folder))
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "again"))
    killed_after(6)
    with pytest.raises(Killed):
        prepare(settings_for(folder))
    place = data.unfinished(tmp_path / "again" / whole.directory.name)
    tokens, journal = place / "train.bin", place / "train.journal"
    if damage == "tokens":
        content = bytearray(tokens.read_bytes())
        content[len(content) // 2] ^= 1
        tokens.write_bytes(content)
    elif damage == "journal":
        content = bytearray(journal.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        journal.write_bytes(content)
    elif damage == "texts":
        lines = [json.loads(line) for line in journal.read_text().splitlines()[:-1]]
        lines[1]["texts"] = "others"
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        validation = place / "validation.bin"
        data.order_by_hash(validation, 16)
    killed_after(None)
    assert prepare(settings_for(folder)).hash == whole.hash


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("packing", ["per-file", "packed"])
def test_several_processes_make_the_same_files(folder, tmp_path, monkeypatch, packing):
    whole = prepare(settings_for(folder, packing=packing))
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "again"))
    again = prepare(settings_for(folder, packing=packing), processes=2)
    assert again.meta == whole.meta


def test_a_killed_worker_is_said(folder, monkeypatch):
    def dead(*args: Any) -> None:
        raise data.BrokenExecutor

    monkeypatch.setattr(data.GrowingFile, "add", dead)
    with pytest.raises(SettingsError, match="processes: one of 1 ended, killed for its memory"):
        prepare(settings_for(folder))
    with pytest.raises(SettingsError, match="processes: 0 must be at least 1"):
        prepare(settings_for(folder), processes=0)


def large(path: Path, documents: int) -> Path:
    """JSON lines, some 10 kB each, all different."""
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(documents):
            text = "".join(f"x{draw.randrange(10**6)} = {draw.randrange(10**6)}\n" for _ in range(600))
            file.write(json.dumps({"content": text}) + "\n")
    return path


def test_sigkill_at_any_moment_and_the_next_command_goes_on(folder, tmp_path, monkeypatch):
    """Three times, at random; the last time two processes were at work, and end with the one that is killed."""
    tokenizer = prepare(settings_for(folder)).directory / "tokenizer.json"
    source = large(tmp_path / "large.jsonl", 350)
    changes = dict(tokenizer=str(tokenizer), context=32, split_by="document")
    whole = prepare(settings_for(source, **changes))
    again = tmp_path / "again"
    (tmp_path / "run.yaml").write_text(json.dumps({"data": {"corpus": str(source), **SMALL, **changes}}))
    command = [sys.executable, "-m", "nfcore", "data", str(tmp_path / "run.yaml"), "--processes"]
    environment = {**os.environ, "NFCORE_DATA": str(again)}
    draw = random.Random()
    for processes in ("1", "1", "2"):
        process = subprocess.Popen([*command, processes], env=environment, start_new_session=True)
        while process.poll() is None and not any(again.glob(".*/*.journal")):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        process.kill()
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL)
        for _ in range(100):
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("workers outlive their parent")
    subprocess.run([*command, "1"], env=environment, check=True, capture_output=True)
    assert visible(again) == [whole.directory.name]
    monkeypatch.setenv("NFCORE_DATA", str(again))
    assert prepare(settings_for(source, **changes)).hash == whole.hash


def test_a_full_disk_keeps_what_is_made_and_says_what_to_do(folder, cache, monkeypatch):
    def full(path, width):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(data, "order_by_hash", full)
        with pytest.raises(
            SettingsError, match=r"\(No space left on device\); free space .*NFCORE_DATA.*goes on"
        ) as error:
            prepare(settings_for(folder))
    assert str(cache) in str(error.value)
    assert visible(cache) == []
    monkeypatch.setattr(data, "train_tokenizer", None)  # it is there
    prepare(settings_for(folder))


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "file" / "tokens"))
    with pytest.raises(SettingsError, match=r"file/tokens/\w+: token files cannot be written \(Not a directory\)"):
        prepare(settings_for(folder))


def test_any_locale_umask_and_path_without_a_home(folder, tmp_path):
    """And with a clock that says 1970."""
    whole = prepare(settings_for(folder))
    place = tmp_path / "naïve путь with spaces"
    place.mkdir()
    folder.rename(place / "корпус")
    code = (
        "import os, sys, time; os.umask(0o077); time.time = lambda: 0.0\n"
        "from nfcore.data import prepare; from nfcore.settings import DataSettings\n"
        f"print(prepare(DataSettings(corpus=sys.argv[1], **{SMALL})).hash)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LANG", "PYTHONUTF8")}
    environment |= {"LC_ALL": "C", "NFCORE_DATA": str(place / "жетоны")}
    command = [sys.executable, "-c", code, str(place / "корпус")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == whole.hash
    (directory,) = (place / "жетоны").iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    for corpus in ("~no-such-user/corpus", "a" * 5000, "no\0path"):
        with pytest.raises(SettingsError, match=r"data\.corpus: "):
            prepare(settings_for(corpus))
    with pytest.raises(SettingsError, match=r"data\.tokenizer: '~no-such-user/x'"):
        data.load_tokenizer("~no-such-user/x", 300)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_token_numbers_of_16_and_of_32_bits(tmp_path, size, dtype):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    numbers = [[size - 1 - (17 * i + j) % size for j in range(8)] for i in range(40)]
    lines = [json.dumps({"content": " ".join(f"w{n}" for n in row)}) for row in numbers]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    settings = settings_for(
        tmp_path / "a.jsonl", tokenizer=str(tmp_path), vocab_size=size, split_by="document", validation_fraction=0.5
    )
    tokens = prepare(settings)
    assert tokens.meta["dtype"] == dtype == tokens.train.dtype
    assert sorted_rows(tokens.train) + sorted_rows(tokens.validation) != []
    assert sorted(sorted_rows(tokens.train) + sorted_rows(tokens.validation)) == sorted(numbers)
    assert max(map(max, numbers)) == size - 1
    assert data.Sequences(tokens.train)[0].dtype == np.int64


def test_wrong_vocabularies_are_refused(folder, tmp_path):
    made = prepare(settings_for(folder))
    path = str(made.directory / "tokenizer.json")
    assert prepare(settings_for(folder, tokenizer=path)).hash == made.hash
    with pytest.raises(SettingsError, match=r"data\.vocab_size: 269 differs from the 270 tokens"):
        prepare(settings_for(folder, tokenizer=path, vocab_size=269))
    holes = json.loads(Path(path).read_text())
    holes["model"]["vocab"][max(holes["model"]["vocab"], key=holes["model"]["vocab"].get)] = 70000
    (tmp_path / "holes.json").write_text(json.dumps(holes))
    with pytest.raises(SettingsError, match=r"data\.tokenizer: .*holes\.json numbers a token 70000"):
        prepare(settings_for(folder, tokenizer=str(tmp_path / "holes.json")))
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


def overlap(train: Iterable[str], validation: Iterable[str], **options: int) -> float:
    watch = Overlap(**options)
    assert [*watch.validation(validation)] == [*validation]
    assert [*watch.train(train)] == [*train]
    return watch.share


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
    with pytest.raises(SettingsError, match=r"No space left on device; a copy .* set TMPDIR"):
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


def test_a_record_of_tokens_without_its_own_hash_is_refused(tiny, cache):
    made = prepare(tiny().data).directory
    meta = json.loads((made / "meta.json").read_text())
    del meta["meta_hash"]
    (made / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(SettingsError, match=r"meta\.json: differs from its own SHA-256"):
        prepare(tiny().data)
    del meta["dtype"]  # as the first ones were
    (made / "meta.json").write_text(json.dumps(meta))
    assert prepare(tiny().data).directory == made
