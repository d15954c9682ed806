"""Texts to token files, on corpora of a few kilobytes; nothing is downloaded."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nfcore import corpus, tokens
from nfcore.settings import DataSettings, SettingsError
from nfcore.tokens import END_OF_TEXT, prepare


SMALL = {"vocab_size": 270, "context": 8, "validation_fraction": 0.3}
FILES = ["meta.json", "tokenizer.json", "train.bin", "validation.bin"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "tokens"))
    return tmp_path / "tokens"


def settings_for(path, **changes) -> DataSettings:
    return DataSettings(corpus=str(path), **{**SMALL, **changes})


def python(code: str, *arguments: object, **environment: str) -> str:
    """What a program prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    changed = {**os.environ, **environment}
    return subprocess.run(command, env=changed, check=True, capture_output=True, text=True).stdout


def read(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def oracle(texts: list[list[int]], context: int, end_of_text: int | None) -> list[list[int]]:
    if end_of_text is not None:
        texts = [[token for text in texts for token in [end_of_text, *text]][1:]]
    return [text[i : i + context] for text in texts for i in range(0, len(text) - context + 1, context)]


@pytest.mark.parametrize("packing", ["per-file", "packed"])
def test_token_files_are_the_oracle(folder, tmp_path, packing):
    (folder / "empty.py").touch()
    settings = settings_for(folder, packing=packing)
    made = prepare(settings)
    end = made.tokenizer.token_to_id(END_OF_TEXT) if packing == "packed" else None
    for part, texts in corpus.local_corpus(settings).load(tmp_path / "arrow").items():
        ids = [made.tokenizer.encode(text).ids for text in corpus.texts_of(texts)]
        rows, meta = getattr(made, part), made.meta[part]
        assert rows.dtype == np.uint16
        assert not rows.flags.writeable
        assert (meta["documents"], meta["tokens"], meta["unknown"]) == (len(ids), sum(map(len, ids)), 0)
        assert meta["bytes"] == sum(len(text.encode()) for text in corpus.texts_of(texts))
        assert sorted(rows.tolist()) == sorted(oracle(ids, 8, end))
        if part == "train":
            assert rows.tolist() == oracle(ids, 8, end)
        else:
            assert rows.tolist() != oracle(ids, 8, end)  # in the order of their hashes


def test_the_same_bytes_at_any_time_and_place(folder, tmp_path, monkeypatch, cache, capfd):
    """Tokens and key are those that nfcore made before it used datasets."""
    monkeypatch.chdir(tmp_path)
    first = prepare(settings_for(folder.name))
    assert (first.hash, first.directory.name) == ("0e09dbdc511e", "ac2dcbc18a992f3a")
    assert [path.name for path in cache.iterdir()] == [first.directory.name]
    assert [*read(first.directory)] == FILES
    before = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    assert prepare(settings_for(folder.name)).hash == first.hash
    assert {path: path.stat().st_mtime_ns for path in first.directory.iterdir()} == before
    monkeypatch.setenv("NFCORE_DATA", str(tmp_path / "elsewhere"))
    second = prepare(settings_for(folder.rename(tmp_path / "moved")))
    assert second.directory.name != first.directory.name  # the path is one of the settings
    assert {**read(second.directory), "meta.json": b""} == {**read(first.directory), "meta.json": b""}
    (tmp_path / "moved" / "group0" / "file0.py").write_text("def other():\n    pass\n")
    third = prepare(settings_for(tmp_path / "moved"))
    assert third.directory != second.directory  # nothing stale
    assert prepare({"corpus": str(tmp_path / "moved"), **SMALL}).directory == third.directory
    for wrong in ("a.yaml", {"corpora": "x"}):
        with pytest.raises(SettingsError, match=r"^data: ('a.yaml' must be a mapping|unknown setting 'corpora')"):
            prepare(wrong)
    assert capfd.readouterr().err == ""
    assert not [*Path.home().glob(".cache/huggingface/datasets/*generator*")]


def test_tokenizer_gives_the_text_back_and_never_sees_validation(folder, tmp_path):
    made = prepare(settings_for(folder))
    text = 'def é():\n\treturn "\U0001f600"\r\n'
    assert made.tokenizer.decode(made.tokenizer.encode(text).ids) == text
    train = corpus.local_corpus(settings_for(folder)).load(tmp_path / "arrow")["train"]
    again = tokens.train_tokenizer(corpus.texts_of(train), 270)
    assert again.to_str(pretty=True) == (made.directory / "tokenizer.json").read_text()


def test_end_of_text_in_a_document_is_text_and_what_is_left_out_is_said(folder, capfd):
    for path in folder.rglob("*.py"):
        path.write_text(f"x = '{END_OF_TEXT}'\n" + path.read_text())
    (folder / "a.bin").touch()
    (folder / "zero.py").write_bytes(b"\0")
    made = prepare(settings_for(folder))
    assert not (made.train == made.tokenizer.token_to_id(END_OF_TEXT)).any()
    assert made.meta["skipped"] == {".bin file": 1, "binary": 1}
    assert capfd.readouterr().err == f"data.corpus: left out of {folder}: 1 .bin file, 1 binary\n"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(folder, name):
    path = prepare(settings_for(folder)).directory / name
    content = path.read_bytes()
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in (0, len(content) // 3)]
    for damaged in (*flipped, content[:-2], b"", b"[" * 10**5, b'{"train": ' + b"9" * 5000 + b"}", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(SettingsError, match=rf"({name}: differs from|incomplete or unreadable).*delete the dir"):
            prepare(settings_for(folder))
    path.write_bytes(content)
    prepare(settings_for(folder))


def test_two_at_once_end_well(folder, cache, capsys, monkeypatch):
    make = tokens.make

    def slow(*args):
        time.sleep(0.3)
        make(*args)

    monkeypatch.setattr(tokens, "make", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [settings_for(folder)] * 2)
    assert first.hash == second.hash
    assert [path.name for path in cache.iterdir()] == [first.directory.name]
    assert capsys.readouterr().err.count("waits for another process that makes it") == 1


def test_an_error_of_the_disk_keeps_what_is_made(folder, cache, monkeypatch):
    def full(path, settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "order_by_hash", full)
        said = r"No space left on device\); free space .*NFCORE_DATA.*goes on"
        with pytest.raises(SettingsError, match=said) as error:
            prepare(settings_for(folder))
    assert str(cache) in str(error.value)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.GeneratorBasedBuilder, "_prepare_split", None)  # the texts are there
        made = prepare(settings_for(folder))
    assert [path.name for path in cache.iterdir()] == [made.directory.name]
    monkeypatch.setenv("NFCORE_DATA", str(folder / "group0" / "file0.py" / "tokens"))
    with pytest.raises(SettingsError, match=r"token files cannot be written \(NotADirectoryError"):
        prepare(settings_for(folder))


def test_sigkill_at_any_moment_and_the_next_command_makes_the_same(folder, tmp_path, cache, monkeypatch):
    draw = random.Random(0)
    with (tmp_path / "large.jsonl").open("w") as file:
        for _ in range(200):
            text = "".join(f"x{draw.randrange(10**6)} = {draw.randrange(10**6)}\n" for _ in range(600))
            file.write(json.dumps({"content": text}) + "\n")
    settings = {
        **SMALL,
        "corpus": str(tmp_path / "large.jsonl"),
        "tokenizer": str(prepare(settings_for(folder)).directory),
    }
    whole = prepare(DataSettings(**settings))
    (tmp_path / "run.yaml").write_text(json.dumps({"data": settings}))
    command = [sys.executable, "-m", "nfcore", "data", str(tmp_path / "run.yaml")]
    again = tmp_path / "again"
    environment = {**os.environ, "NFCORE_DATA": str(again)}
    for _ in range(3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not any(again.glob(".*.unfinished")):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        process.kill()
        process.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert [path.name for path in again.iterdir()] == [whole.directory.name]
    assert read(again / whole.directory.name) == read(whole.directory)


@pytest.mark.parametrize(("fraction", "part"), [(1e-9, "validation"), (1 - 1e-9, "train")])
def test_a_part_without_sequences_is_refused_and_leaves_nothing(folder, cache, fraction, part):
    made = prepare(settings_for(folder))
    settings = settings_for(folder, validation_fraction=fraction, tokenizer=str(made.directory))
    with pytest.raises(SettingsError, match=rf"the {part} part \(0 documents, 0 tokens\) gives no sequence"):
        prepare(settings)
    assert [path.name for path in cache.iterdir() if "lock" not in path.name] == [made.directory.name]


def word_level(path: Path, size: int) -> Path:
    """A tokenizer of words w0, w1, ...; the first also stands for what it does not know."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_token_numbers_of_16_and_of_32_bits(tmp_path, size, dtype):
    numbers = [[size - 1 - (17 * i + j) % (size - 1) for j in range(8)] for i in range(40)]
    lines = [json.dumps({"content": " ".join(f"w{n}" for n in row)}) for row in numbers]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    own = word_level(tmp_path / "tokenizer.json", size)
    made = prepare(settings_for(tmp_path / "a.jsonl", tokenizer=str(own), vocab_size=size, validation_fraction=0.5))
    assert made.meta["dtype"] == dtype == made.train.dtype
    assert sorted([*made.train.tolist(), *made.validation.tolist()]) == sorted(numbers)
    assert made.train.max() == size - 1 or made.validation.max() == size - 1


def test_a_tokenizer_that_does_not_know_the_corpus_is_refused(folder, tmp_path):
    words = word_level(tmp_path / "words.json", 270)
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), *((f"\u4e00{i}", -1.0) for i in range(269))], unk_id=0))
    pieces.save(str(tmp_path / "pieces.json"))
    silent = Tokenizer(models.BPE({f"\u4e00{i}": i for i in range(270)}, []))  # drops what it does not know
    silent.save(str(tmp_path / "silent.json"))
    for path in (words, tmp_path / "pieces.json", tmp_path / "silent.json"):
        with pytest.raises(SettingsError, match=rf"data\.tokenizer: {path} does not know most of the train part"):
            prepare(settings_for(folder, tokenizer=str(path)))


def test_wrong_tokenizers_are_refused_for_what_they_are(folder, tmp_path):
    from transformers import BertTokenizer, ByT5Tokenizer

    made = prepare(settings_for(folder))
    path = str(made.directory / "tokenizer.json")
    assert prepare(settings_for(folder, tokenizer=path)).hash == made.hash
    holes = json.loads(Path(path).read_text())
    holes["model"]["vocab"][max(holes["model"]["vocab"], key=holes["model"]["vocab"].get)] = 70000
    (tmp_path / "holes.json").write_text(json.dumps(holes))
    (tmp_path / "broken.json").write_text("{}")
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    words = tmp_path / "words"
    BertTokenizer({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "def": 5}).save_pretrained(words)
    for name, reason in {
        path: r"data\.vocab_size: 269 differs from the 270 tokens",
        str(tmp_path / "holes.json"): r"data\.vocab_size: 269 .* numbered up to 70000",
        str(tmp_path / "broken.json"): r"data\.tokenizer: .*broken\.json cannot be loaded .*; give a tokenizer\.json",
        str(tmp_path / "byt5"): r"data\.tokenizer: .*byt5 is a ByT5Tokenizer, which has no tokenizer\.json",
        str(words): r"data\.vocab_size: 269 differs from the 6 tokens",
        "no/such-tokenizer": r"data\.tokenizer: no/such-tokenizer cannot be loaded .*; download it once with a network",
        "~no-such-user/x": r"data\.tokenizer: ~no-such-user/x cannot be loaded",
    }.items():
        with pytest.raises(SettingsError, match=reason) as error:
            tokens.load_tokenizer(name, 269)
        assert "\n" not in str(error.value)
    plain = word_level(tmp_path / "plain.json", 270)
    with pytest.raises(SettingsError, match=r"data\.packing: packed needs a tokenizer with <\|endoftext\|>"):
        prepare(settings_for(folder, tokenizer=str(plain), packing="packed"))
    with pytest.raises(SettingsError, match=r"data\.vocab_size: the training part reaches \d+ of 60000"):
        prepare(settings_for(folder, vocab_size=60000))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Text of 4 MB and of 32 MB, whose documents are few kilobytes."""
    code = (
        "import resource, sys; from nfcore.tokens import prepare; from nfcore.settings import DataSettings\n"
        "prepare(DataSettings(corpus=sys.argv[1], vocab_size=270, tokenizer=sys.argv[2], context=32))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    tokenizer = word_level(tmp_path / "words.json", 270)
    peaks = []
    for megabytes in (4, 32):
        path = tmp_path / f"{megabytes}.jsonl"
        with path.open("w") as file:
            for number in range(250 * megabytes):
                file.write(json.dumps({"content": f"w{number} {number} " + "w1 w2 w3 w4 " * 333}) + "\n")
        peaks.append(float(python(code, path, tokenizer)))
    assert peaks[1] - peaks[0] < 60


def test_codeparrot_without_a_network_says_what_to_do(tmp_path):
    """And opening tokens imports none of the heavy modules."""
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas")
    code = f"""
import sys
from nfcore.settings import DataSettings, SettingsError
from nfcore.tokens import prepare
assert not [name for name in {heavy} if name in sys.modules]
try:
    prepare(DataSettings(corpus="codeparrot", vocab_size=50000))
except SettingsError as error:
    print(error)
"""
    said = python(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    for part in ("huggingface-course/codeparrot-ds-train", "HF_HOME", "data.train_files", "data.tokenizer"):
        assert part in said
    assert said.count("\n") == 1
    assert not (tmp_path / "tokens").exists()


def test_any_locale_umask_and_path_without_a_home(folder, tmp_path):
    """And with a clock that says 1970."""
    whole = prepare(settings_for(folder))
    place = tmp_path / "naïve [путь] with :: spaces"
    place.mkdir()
    folder.rename(place / "корпус")
    code = (
        "import os, sys, time; os.umask(0o077); time.time = lambda: 0.0\n"
        "from nfcore.tokens import prepare; from nfcore.settings import DataSettings\n"
        f"print(prepare(DataSettings(corpus=sys.argv[1], **{SMALL})).hash)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LANG", "PYTHONUTF8")}
    environment |= {"LC_ALL": "C", "NFCORE_DATA": str(place / "жетоны")}
    command = [sys.executable, "-c", code, str(place / "корпус")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == whole.hash
    (directory,) = (place / "жетоны").iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
