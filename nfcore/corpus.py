"""From a corpus to the texts of training and validation: what is read, what is left out and why, copies, the split.

A corpus is read once to find its identity, a hash of all its texts, and again only if its tokens have to be made. Its
texts then lie in an Arrow file that ``datasets`` maps into memory. A document takes some 100 bytes of memory.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import importlib.metadata
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nfcore.formats import LONGEST, RECORDS, ROWS, file_texts, kind, record_texts, suffix, text_in
from nfcore.settings import DataSettings, SettingsError, choice, digest
from nfcore.store import file_sha256, refusing, sha256


if TYPE_CHECKING:
    from datasets import Dataset

BLOCK = 4096  # characters: a single text file is cut into documents of this size, at line ends
SHUFFLE_WINDOW = 10_000  # documents of a stream among which the next one is drawn
SPLIT_SALT = "nfcore"  # without it 0.7 % of the bytes of python-source fall to validation, with it about 8 %

# Pure-Python wheels only: the same bytes on every platform and Python version that the lock serves.
PYTHON_SOURCE_PACKAGES: tuple[str, ...] = (
    *("networkx", "Pygments", "Sphinx", "docutils", "ipython", "jedi", "huggingface_hub", "datasets", "accelerate"),
    *("mpmath", "snakemake", "fsspec", "rich", "prompt_toolkit", "Jinja2", "click", "anyio", "jupytext", "papermill"),
    *("nbclient", "nbformat", "jsonschema", "myst-parser", "markdown-it-py", "urllib3", "requests"),
)

CODEPARROT = {"train": "huggingface-course/codeparrot-ds-train", "validation": "huggingface-course/codeparrot-ds-valid"}
HUB_REMEDY = "download it once with a network, or set HF_HOME to a cache that has it, or give local copies as "
HUB_REMEDY += "data.train_files, data.validation_files and data.tokenizer"


class Document(NamedTuple):
    """One file, record or block of a corpus; documents of one ``group`` may be near-copies of each other."""

    text: str
    group: str


class Corpus(NamedTuple):
    """What the cache key knows a corpus by, what was left out of it, and ``load``, which stores its texts below a
    folder and gives them by part, each a data set with one column ``text``."""

    identity: str
    facts: dict[str, Any]
    load: Callable[[Path], dict[str, Dataset]]


def documents(settings: DataSettings, skipped: Counter[str]) -> Iterator[Document]:
    """The documents of ``python-source`` or of a path, always in the same order; what is left out is counted by reason
    in ``skipped``. Files are read, never imported.

    Raises:
        SettingsError: no such path or column, records that are not of their format, a package that is missing or
            differs from its RECORD.
    """
    path = Path(os.path.expanduser(settings.corpus))
    if settings.corpus == "python-source":
        return chain.from_iterable(package_documents(package, skipped) for package in PYTHON_SOURCE_PACKAGES)
    if path.is_dir() or path.is_file():
        return path_documents(path, settings.text_column, skipped)
    raise SettingsError(f"data.corpus: {settings.corpus!r} is not python-source, codeparrot or an existing path")


def package_documents(package: str, skipped: Counter[str]) -> Iterator[Document]:
    """The Python files of an installed package, each checked against the hash in its RECORD.

    The group is the first two directories, for example ``networkx/algorithms``, since near-copies mostly share one.
    A file more than a quarter of whose bytes are digits is a table of numbers, not source, and is left out.
    """
    remedy = "install the locked versions again, or give data.corpus a path"
    with refusing(f"data.corpus: python-source cannot read the package {package}", remedy):
        files = importlib.metadata.files(package) or []
        # Scripts outside the package ("../../bin/x.py") are rewritten by the installer for each machine.
        sources = sorted(file for file in files if file.suffix == ".py" and file.parts[0] != "..")
        if not sources:
            raise ValueError("no RECORD of Python files")
        for file in sources:
            data = file.read_binary()
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            if file.hash is None or file.hash.value != found:
                raise ValueError(f"{file} differs from the package's RECORD")
            if sum(map(data.count, b"0123456789")) > len(data) / 4:
                skipped["number table"] += 1
                continue
            group = "/".join(file.parts[:-1][:2]) or package
            yield from (Document(text, group) for text in file_texts(Path(str(file.locate())), skipped, LONGEST))


def path_documents(path: Path, column: str, skipped: Counter[str]) -> Iterator[Document]:
    """The texts or the records of a file or folder.

    Of a folder with both, what is larger in bytes is read and the other left out. The group of a text file is its first
    directory below the folder. A record, and a block of a single file, is a group of its own.
    """
    root = Path(os.path.realpath(path))
    files = [*folder_files(root, skipped)] if path.is_dir() else [path]
    size: Counter[str] = Counter()
    for file in filter(os.path.isfile, files):
        size[kind(file)] += os.path.getsize(file)
    chosen = "records" if size["records"] > size["text"] else "text"
    whole = path.is_dir() and chosen == "text"
    for file in files:
        if kind(file) != chosen:
            skipped[f"{suffix(file) or 'other'} file"] += 1
        elif chosen == "records":
            yield from (Document(text, sha256(text)) for text in record_texts(file, column, skipped))
        else:
            for text in file_texts(file, skipped, LONGEST if whole else BLOCK):
                yield Document(text, file.relative_to(root).parts[0] if whole else sha256(text))


def folder_files(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Every file below ``root`` but those in hidden directories and behind symbolic links that lead outside."""
    for folder, below, names in os.walk(root, onerror=lambda _: skipped.update(["unreadable"])):
        skipped.update("hidden directory" for name in below if name.startswith("."))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for path in sorted(Path(folder, name) for name in names + below):
            if not Path(os.path.realpath(path)).is_relative_to(root):
                skipped["link outside"] += 1
            elif path.exists() and not path.is_file():
                skipped["not a file"] += not path.is_dir()  # a pipe would block; a directory is read in its own place
            else:
                yield path


def in_validation(key: str, fraction: float) -> bool:
    """Whether the documents of a group (or a single one) with this key belong to validation: a hash decides."""
    # A name of a file need not be valid UTF-8.
    hashed = hashlib.sha256((SPLIT_SALT + key).encode("utf-8", "surrogateescape")).hexdigest()
    return int(hashed[:16], 16) < fraction * 16**16


def distinct(settings: DataSettings, count: Counter[str]) -> Iterator[tuple[str, Document]]:
    """The first document of each text, with the hash of its text."""
    seen: set[bytes] = set()  # halves of hashes, which are the memory that a document takes
    for document in documents(settings, count):
        key = sha256(document.text)
        if (half := bytes.fromhex(key[:32])) in seen:
            count["duplicate"] += 1
        else:
            seen.add(half)
            yield key, document


def local_corpus(settings: DataSettings) -> Corpus:
    """A corpus without exact copies, split and shuffled. The first of equal texts stays, so none is in both parts."""
    skipped: Counter[str] = Counter()
    parts: dict[str, list[int]] = {"train": [], "validation": []}
    hashed = hashlib.sha256()  # of the JSON list of every text's hash and group
    with refusing(f"data.corpus: {settings.corpus!r} cannot be read", "choose another path", OSError):
        for number, (key, document) in enumerate(distinct(settings, skipped)):
            hashed.update(f"{', ' if number else '['}{json.dumps([key, document.group])}".encode())
            split_key = document.group if settings.split_by == "group" else key
            validates = in_validation(split_key, settings.validation_fraction)
            parts["validation" if validates else "train"].append(number)
    hashed.update(b"]")
    total = sum(map(len, parts.values()))
    facts: dict[str, Any] = {"duplicates": skipped.pop("duplicate", 0), "skipped": dict(sorted((+skipped).items()))}
    if skipped["malformed"] + skipped["not text"] >= total + facts["duplicates"]:
        reasons = counts(facts["skipped"]) or "nothing skipped"
        found = f"{'little' if total else 'no'} text ({total} documents; skipped: {reasons})"
        raise SettingsError(f"data.corpus: {settings.corpus!r} holds {found}")
    for part, most in (("train", settings.max_documents), ("validation", settings.max_validation_documents)):
        random.Random(0).shuffle(parts[part])
        del parts[part][most or total :]
    if settings.corpus == "python-source":
        facts["packages"] = {name: importlib.metadata.version(name) for name in PYTHON_SOURCE_PACKAGES}

    def load(place: Path) -> dict[str, Dataset]:
        texts = stored(place, "documents", (document.text for _, document in distinct(settings, Counter())))
        return {part: texts.select(numbers) for part, numbers in parts.items()}

    return Corpus(hashed.hexdigest(), facts, load)


def counts(skipped: dict[str, int]) -> str:
    """What was left out, in words; a table of numbers is no source and goes without saying."""
    return ", ".join(f"{count} {name}" for name, count in skipped.items() if name != "number table")


def stored(place: Path, name: str, texts: Iterator[str | None]) -> Dataset:
    """The texts in an Arrow file below ``place``, which is not made again if it is there."""
    import datasets  # takes a second, so only where a corpus is more than read

    features = datasets.Features({"text": datasets.Value("large_string")})
    options: dict[str, Any] = {"cache_dir": str(place), "fingerprint": name, "writer_batch_size": ROWS}
    try:
        return datasets.Dataset.from_generator(lambda: ({"text": text} for text in texts), features, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None


def texts_of(part: Dataset) -> Iterator[str]:
    return chain.from_iterable(batch["text"] for batch in part.iter(ROWS))


def codeparrot_corpus(settings: DataSettings) -> Corpus:
    """The paper's two data sets, each shuffled with seed 0 and cut to its first documents; copies stay, as there.

    Without ``streaming`` the whole data set is downloaded once, into Hugging Face's own cache. With it only as much is
    downloaded as the first documents need, at each tokenising anew. The order is then another: of the files, and within
    a window of ``SHUFFLE_WINDOW`` documents. Tokens made from the Hub's stream are found again by the settings alone,
    since to ask whether it changed would be to read it again.
    """
    import datasets

    facts: dict[str, Any] = {"duplicates": None, "skipped": {}}
    sources = {part: getattr(settings, f"{part}_files") or hub for part, hub in CODEPARROT.items()}
    most = {"train": settings.max_documents, "validation": settings.max_validation_documents}

    def identity(where: str) -> str:
        if settings.streaming or settings.train_files:
            files = [where] if os.path.isfile(where) else sorted(glob.glob(where))
            return "".join(file_sha256(Path(file)) for file in files) or where
        with refusing(f"data: the data set {where} cannot be loaded", HUB_REMEDY):
            return datasets.load_dataset_builder(where).hash or where

    def texts(part: str, place: Path) -> Iterator[str | None]:
        name, options = sources[part], {"split": "train", "streaming": settings.streaming}
        if settings.train_files:
            choice(f"data.{part}_files: the suffix", suffix(Path(name)), [s for s in RECORDS if RECORDS[s] != "csv"])
            options |= {"data_files": name, "cache_dir": str(place)}
            name = RECORDS[suffix(Path(name))]
        how = {"buffer_size": SHUFFLE_WINDOW} if settings.streaming else {"keep_in_memory": True}
        with refusing(f"data: the data set {sources[part]} cannot be loaded", HUB_REMEDY):
            for row in islice(datasets.load_dataset(name, **options).shuffle(seed=0, **how), most[part]):
                yield text_in(row, settings.text_column, sources[part])

    def load(place: Path) -> dict[str, Dataset]:
        rows = {part: stored(place, part, texts(part, place)) for part in sources}
        parts = {part: rows[part].select(rows[part].data["text"].is_valid().to_numpy().nonzero()[0]) for part in rows}
        if lost := sum(map(len, rows.values())) - (kept := sum(map(len, parts.values()))):
            facts["skipped"] = {"not text": lost}
        if lost > kept:
            raise SettingsError(f"data.text_column: {settings.text_column!r} is text in only {kept} records")
        return parts

    return Corpus(digest([*map(identity, sources.values())], 64), facts, load)


def overlap(train: Iterable[str], validation: Iterable[str], most: int = 2**18) -> float:
    """The fraction of the distinct lines of validation that train has too. Lines are stripped and at least 20
    characters long. The first ``most`` of validation, whose documents are shuffled, stand for all."""

    def lines(texts: Iterable[str]) -> Iterator[str]:
        return (line for text in texts for line in map(str.strip, text.splitlines()) if len(line) >= 20)

    own = set(islice(lines(validation), most))
    return 1 - len(own.difference(lines(train))) / len(own) if own else 0.0
