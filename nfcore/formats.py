"""How a file becomes texts: the formats that are read, their compression, and what of a file is left out.

A format is told by its suffix in any case. Whatever is read has to be of that format and in UTF-8.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from nfcore.settings import choice
from nfcore.store import refusing


LONGEST = 2**24  # characters of a document: a longer text is cut at line ends, a longer record left out
ROWS = 128  # documents held at once

# The loader of datasets for files of records, by suffix. Other suffixes are of formats that are not read, or text.
RECORDS = dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "json")
RECORDS |= {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
NOT_READ = ".zip .tar .tgz .7z .rar .whl .jar .z .lz4 .br .xlsx .xls .ods .docx .doc .odt .pptx .pdf .epub .pkl .npy "
NOT_READ += ".pickle .joblib .npz .h5 .hdf5 .orc .avro .db .sqlite .sqlite3 .lmdb .tfrecord .msgpack .bin .pt .pth "
NOT_READ += ".safetensors .gguf .rds .mat .dta .lance .warc"
OPENERS = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma", ".zst": "pyarrow"}  # modules, all but pyarrow with open()
NOT_DATA = "dataset_info.json dataset_infos.json dataset_dict.json state.json"  # what `datasets` writes beside data


def suffix(path: Path) -> str:
    """The suffix in lower case that tells the format, without that of a compression."""
    return next((s for s in map(str.lower, reversed(path.suffixes)) if s not in OPENERS), "")


def kind(path: Path) -> str:
    if path.name in NOT_DATA.split() or suffix(path) in NOT_READ.split():
        return "not read"
    return "records" if suffix(path) in RECORDS else "text"


def open_file(path: Path, mode: str, **options: Any) -> Any:
    """Open a file that may be compressed."""
    module = importlib.import_module(OPENERS.get(path.suffix.lower(), "builtins"))
    if module.__name__ != "pyarrow":
        return module.open(path, mode, **options)
    stream = io.BufferedReader(module.input_stream(str(path), compression="zstd"))
    return stream if mode == "rb" else io.TextIOWrapper(stream, **options)


def file_texts(path: Path, skipped: Counter[str], least: int) -> Iterator[str]:
    """A UTF-8 file, line ends untouched, in pieces of at least so many characters, the last one shorter.

    A piece ends where a line does, unless that is longer than ``LONGEST``. A file that is binary or cannot be read
    gives none and is counted. It is read twice, so that this is known before its first piece.
    """
    how = {"mode": "rt", "encoding": "utf-8", "newline": "\n"}
    try:
        with open_file(path, **how) as file:
            if any("\0" in chunk for chunk in iter(lambda: file.read(2**20), "")):
                raise UnicodeError
    except Exception as error:  # of the file system, or of any of the decompressors
        why = getattr(error, "strerror", None) or error
        skipped["binary" if isinstance(error, UnicodeError) else f"unreadable ({why})"] += 1
        return
    with open_file(path, **how) as file:
        pieces = iter(lambda: file.read(least - 1) + file.readline(LONGEST - least + 1), "")
        yield from chain([next(pieces, "")], pieces)  # an empty file is a document too


def text_in(row: dict[str, Any], column: str, where: object) -> str | None:
    """The text in a column of a record; None for null, a number or half a surrogate pair."""
    choice(f"data.text_column: in {where}", column, row)
    text = row[column]
    return text if isinstance(text, str) and text.encode("utf-8", "ignore").decode() == text else None


def record_texts(path: Path, column: str, skipped: Counter[str]) -> Iterator[str]:
    """The texts in one column of a file of records."""
    rows = {"json": json_rows, "csv": csv_rows}.get(RECORDS[suffix(path)], table_rows)
    with refusing(f"data.corpus: {path} cannot be read as {suffix(path)[1:]}", "give it the suffix of its format"):
        for row in rows(path):
            if not isinstance(row, dict):
                skipped["malformed"] += 1
            elif (text := text_in(row, column, path)) is None:
                skipped["not text"] += 1
            elif len(text) > LONGEST:
                skipped["too long"] += 1
            else:
                yield text


def json_rows(path: Path) -> Iterator[Any]:
    """The values of JSON lines and those in JSON arrays; None for a line that is not JSON."""
    with open_file(path, "rb") as file:
        first = file.readline()
        is_array = first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        for line in filter(bytes.strip, [first + file.read()] if is_array else chain([first], file)):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield from row if isinstance(row, list) else [row]


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV or TSV file. A cell is the text that it holds, also if that is ``NA`` or a number."""
    csv.field_size_limit(2**31 - 1)
    with open_file(path, "rt", encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t" if suffix(path) == ".tsv" else ",", strict=True):
            if None in row:
                raise csv.Error(f"a row has {len(row[None])} cells more than the first one")
            yield row


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet or Arrow file as ``datasets`` reads it."""
    import datasets  # takes a second, and text, JSON and CSV need it not

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs, it raises too
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, f"file{''.join(path.suffixes).lower()}")  # datasets takes [ for a pattern, :: for a URL
        plain.symlink_to(path.absolute())
        options: dict[str, Any] = {"batch_size": ROWS} if RECORDS[suffix(path)] == "parquet" else {}
        options |= {"data_files": str(plain), "split": "train", "streaming": True, "cache_dir": folder}
        yield from datasets.load_dataset(RECORDS[suffix(path)], **options)
