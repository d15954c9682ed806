"""Each format of a file gives its texts, whatever the case of its suffix and its compression, or is refused by name."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from nfcore import formats
from nfcore.corpus import documents
from nfcore.settings import DataSettings, SettingsError


TEXTS = ["def f(x):\n    return x\n", "NA", "12", 'a "quoted", cell\r\n', "", "\u2028 é \U0001f600"]


def open_zst(path, mode, **options):
    return io.TextIOWrapper(pa.output_stream(str(path), compression="zstd"), **options)


OPEN = {"": open, ".gz": gzip.open, ".BZ2": bz2.open, ".xz": lzma.open, ".zst": open_zst}


def read(path: Path, **changes) -> tuple[list[str], Counter[str]]:
    skipped: Counter[str] = Counter()
    return [d.text for d in documents(DataSettings(corpus=str(path), **changes), skipped)], skipped


def write(path: Path, texts: list[str] = TEXTS) -> Path:
    """A file of these texts in the format that its name says, with another column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    rows = [{"number": 1, "content": text} for text in texts]
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".arrow" in name:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.Table.from_pylist(rows).schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows))
    elif ".feather" in name:
        pyarrow.feather.write_feather(pa.Table.from_pylist(rows), str(path))
    else:
        opener = OPEN[path.suffix if path.suffix in OPEN else ""]
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            if ".csv" in name or ".tsv" in name:
                writer = csv.DictWriter(file, ["number", "content"], delimiter="\t" if ".tsv" in name else ",")
                writer.writeheader()
                writer.writerows(rows)
            elif ".array" in name:
                json.dump(rows, file, indent=1)
            elif ".txt" not in name:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                file.write("".join(texts))
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("a.jsonl", "a.JSONL", "a.ndjson", "a.jsonlines", "a.json", "a.array.json", "a.array.JSON.gz", "a.jsonl.gz"),
        *("a.Jsonl.BZ2", "a.ndjson.xz", "a.csv", "a.CSV", "a.tsv", "a.csv.gz", "a.tsv.xz", "a.parquet", "a.PARQUET"),
        *(
            "a.jsonl.zst",
            "a.csv.zst",
            "a.arrow",
            "a.feather",
            "we [i]*rd ? :: dir/.hid/a[1].csv",
            "we [i]*rd/a::b.parquet",
            "v1.5/a.b.jsonl",
        ),
    ],
)
def test_records_are_their_texts(tmp_path, name):
    path = write(tmp_path / name)
    assert read(path) == (TEXTS, Counter())
    with pytest.raises(SettingsError, match=r"data\.text_column: in .*: 'body' is not one of number, content"):
        read(path, text_column="body")


@pytest.mark.parametrize("name", ["a.txt", "a.TXT.gz", "a.txt.BZ2", "a.txt.xz", "a.txt.zst"])
def test_text_files_keep_every_character(tmp_path, name):
    assert read(write(tmp_path / name)) == (["".join(TEXTS)], Counter())


def test_what_datasets_writes_beside_data_is_no_data(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"content": TEXTS})).save_to_disk(tmp_path)
    assert read(tmp_path) == (TEXTS, Counter({".json file": 3}))


@pytest.mark.parametrize("name", ["a.zip", "a.XLSX", "a.pkl", "a.tar.gz", "a.npz", "a.sqlite", "a.jsonl.lz4"])
def test_another_format_is_refused_by_its_name(tmp_path, name):
    (tmp_path / name).write_text("text, for all that")
    suffix = formats.suffix(tmp_path / name)
    assert read(tmp_path / name) == ([], Counter({f"{suffix} file": 1}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"no parquet"),
        ("a.arrow", b"no arrow"),
        ("a.csv", b""),
        ("a.csv", b"content,n\na,1,2,3\n"),
        ("a.csv", "content\né\n".encode("latin-1")),
        ("a.jsonl.gz", b'{"content": "plain"}\n'),
        ("a.jsonl.gz", gzip.compress(json.dumps({"content": "x" * 10**5}).encode(), mtime=0)[:-9]),
        ("a.jsonl.zst", b"(\xb5/\xfd"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_refused(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    if not content:
        assert read(tmp_path / name) == ([], Counter({".csv file": 1}))
        return
    with pytest.raises(SettingsError, match=rf"data\.corpus: .*{name} cannot be read as \w+ \(\w+: .*\)"):
        read(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_what_is_no_text_in_records_is_counted(tmp_path):
    rows = [{"content": "one"}, {"content": None}, {"content": 3}, {"content": "\ud800"}, {"content": "two", "more": 1}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join([*lines, "", "{broken", "[" * 10**5, "\xff", ""]))
    assert read(tmp_path / "a.jsonl") == (["one", "two"], Counter({"not text": 3, "malformed": 3}))
    (tmp_path / "b.jsonl").write_bytes(b'{"content": "one"}\n{"content": "\xff"}\n')
    assert read(tmp_path / "b.jsonl") == (["one"], Counter(malformed=1))
    pq.write_table(pa.table({"content": ["one", None]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == (["one"], Counter({"not text": 1}))
    (tmp_path / "c.jsonl").write_text('{"content": "one"}\n"text"\n[1, null]\n')
    assert read(tmp_path / "c.jsonl") == (["one"], Counter(malformed=3))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\0b", "binary"),
        ("é".encode("utf-16"), "binary"),
        (b"text\n" * 2**20 + b"\xff", "binary"),
        (gzip.compress(bytes(10**6), mtime=0), "binary"),
        (gzip.compress(b"text", mtime=0)[:-4], "unreadable (Compressed file ended"),
    ],
)
def test_a_file_that_is_no_text_is_counted(tmp_path, content, reason):
    path = tmp_path / ("a.txt.gz" if content[:2] == b"\x1f\x8b" else "a.txt")
    path.write_bytes(content)
    texts, skipped = read(path)
    assert texts == []
    assert [key[: len(reason)] for key in skipped] == [reason]


@pytest.mark.parametrize("name", ["long.txt", "folder/a.txt", "long.jsonl"])
def test_long_lines_are_cut_and_long_records_left_out(tmp_path, monkeypatch, name):
    for module in (formats, __import__("nfcore.corpus").corpus):
        monkeypatch.setattr(module, "LONGEST", 10_000)
    monkeypatch.setattr("nfcore.corpus.BLOCK", 100)
    short, long = "a line\n" * 40, "é" * 24_000 + "\n"
    path = write(tmp_path / name, [short, long, short + "end"])
    texts, skipped = read(path.parent if "folder" in name else path)
    if name == "long.jsonl":
        assert (texts, skipped) == ([short, short + "end"], Counter({"too long": 1}))
        return
    assert "".join(texts) == short + long + short + "end"
    assert max(map(len, texts)) <= 10_000
    assert len(texts) > (6 if name == "long.txt" else 2)
    assert all(text.endswith("\n") for text in texts[:-1] if len(text) < 10_000)
    assert not skipped
