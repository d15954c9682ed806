"""From a corpus to memory-mapped token files: documents, split, tokenizer, sequences.

:func:`prepare` does everything and answers with :class:`TokenData`. Token files are little-endian 16-bit integers of
shape (N, T), N sequences of T = ``context`` tokens, in a directory named by a hash of everything that made them.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfcore import __version__
from nfcore.settings import DataSettings, SettingsError, digest, project_root


if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FORMAT = 1  # of the token files; part of the cache key, so raise it whenever the same settings give other bytes
TOKEN = np.dtype("<u2")
PARTS = ("train", "validation")
END_OF_TEXT = "<|endoftext|>"
BLOCK = 4096  # characters: a single text file is cut into documents of this size, at line ends
BATCH = 256  # records read, or sequences written, at once
BATCH_TEXT = 2**20  # characters tokenised at once: an encoding takes a hundred times the memory of its tokens
SPLIT_SALT = "nfcore"  # without it 0.7 % of the bytes of python-source fall to validation, with it about 8 %

# Pure-Python wheels only: the same bytes on every platform and Python version that the lock serves.
PYTHON_SOURCE_PACKAGES: tuple[str, ...] = (
    *("networkx", "Pygments", "Sphinx", "docutils", "ipython", "jedi", "huggingface_hub", "datasets", "accelerate"),
    *("mpmath", "snakemake", "fsspec", "rich", "prompt_toolkit", "Jinja2", "click", "anyio", "jupytext", "papermill"),
    *("nbclient", "nbformat", "jsonschema", "myst-parser", "markdown-it-py", "urllib3", "requests"),
)

CODEPARROT = {
    "train": "huggingface-course/codeparrot-ds-train",
    "validation": "huggingface-course/codeparrot-ds-valid",
    "tokenizer": "huggingface-course/code-search-net-tokenizer",
}


@dataclass(frozen=True)
class Document:
    """One file, record or block of a corpus; documents of one ``group`` may be near-copies of each other."""

    text: str
    group: str
    name: str


@dataclass(frozen=True)
class Corpus:
    """The two parts as texts that can be read repeatedly; ``identity`` is what the cache key knows them by."""

    identity: str
    train: Iterable[str]
    validation: Iterable[str]
    facts: dict[str, Any] = field(default_factory=dict)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def documents(settings: DataSettings, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of ``python-source`` or of a path, always in the same order; what is left out is counted by reason
    in ``skipped``. Files are read, never imported.

    Raises:
        SettingsError: no such path, no such column, a package that is missing or differs from its RECORD.
    """
    skipped = Counter() if skipped is None else skipped
    path = Path(settings.corpus).expanduser()
    if settings.corpus == "python-source":
        for package in PYTHON_SOURCE_PACKAGES:
            yield from package_documents(package, skipped)
    elif path.is_dir():
        yield from folder_documents(path.resolve(), skipped)
    elif not path.is_file():
        raise SettingsError(f"data.corpus: {settings.corpus!r} is not python-source, codeparrot or an existing path")
    else:
        readers = {".jsonl": json_texts, ".json": json_texts, ".parquet": parquet_texts}
        read = readers.get(path.suffix)
        texts = read(path, settings.text_column, skipped) if read else blocks(read_text(path, skipped) or "")
        for index, text in enumerate(texts):
            try:
                yield Document(text, sha256(text), f"{path.name}:{index}")
            except (AttributeError, UnicodeEncodeError):  # null, a number; half a surrogate pair
                skipped["not text"] += 1


def read_text(path: Path, skipped: Counter[str]) -> str | None:
    """A UTF-8 file, line ends untouched; None, and counted, if it is binary or cannot be read."""
    try:
        data = path.read_bytes()
        if b"\0" not in data:
            return data.decode("utf-8")
        skipped["binary"] += 1
    except UnicodeDecodeError:
        skipped["binary"] += 1
    except OSError:
        skipped["unreadable"] += 1
    return None


def package_documents(package: str, skipped: Counter[str]) -> Iterator[Document]:
    """The Python files of an installed package, each checked against the hash in its RECORD.

    The group is the first two directories, for example ``networkx/algorithms``, since near-copies mostly share one.
    A file more than a quarter of whose bytes are digits is a table of numbers, not source, and is left out.
    """
    remedy = "install the locked versions again, or give data.corpus a path"
    try:
        files = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError:
        raise SettingsError(
            f"data.corpus: python-source needs the package {package}, not installed; {remedy}"
        ) from None
    # Scripts outside the package ("../../bin/x.py") are rewritten by the installer for each machine.
    sources = sorted(file for file in files if file.suffix == ".py" and file.parts[0] != "..")
    if not sources:
        raise SettingsError(f"data.corpus: python-source finds no RECORD of Python files for {package}; {remedy}")
    for file in sources:
        path = Path(str(file.locate()))
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"data.corpus: {package}: {file} cannot be read ({error.strerror}); {remedy}") from None
        found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        if file.hash is None or (file.hash.mode, file.hash.value) != ("sha256", found):
            raise SettingsError(f"data.corpus: {package}: {file} differs from the package's RECORD; {remedy}")
        if sum(map(data.count, b"0123456789")) > len(data) / 4:
            skipped["number table"] += 1
        elif (text := read_text(path, skipped)) is not None:
            yield Document(text, "/".join(file.parts[:-1][:2]) or package, file.as_posix())


def folder_documents(root: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Every text file below ``root`` but those in hidden directories and symbolic links that lead outside."""
    for folder, below, names in os.walk(root, onerror=lambda _: skipped.update(["unreadable"])):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for path in sorted(Path(folder) / name for name in names):
            relative = path.relative_to(root)
            if not path.resolve().is_relative_to(root):
                skipped["link outside"] += 1
            elif path.exists() and not path.is_file():
                skipped["not a file"] += 1  # a pipe would block
            elif (text := read_text(path, skipped)) is not None:
                yield Document(text, relative.parts[0], relative.as_posix())


def json_texts(path: Path, column: str, skipped: Counter[str]) -> Iterator[Any]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError:
                skipped["malformed"] += bool(line.strip())
                continue
            if not isinstance(record, dict) or column not in record:
                raise SettingsError(f"data.text_column: no {column!r} in line {number} of {path}: {line[:60]!r}")
            yield record[column]


def parquet_texts(path: Path, column: str, skipped: Counter[str]) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_column(column, file.schema_arrow.names, path)
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise SettingsError(f"data.corpus: {path} is not a parquet file ({str(error).splitlines()[0]})") from None


def check_column(column: str, columns: Sequence[str], where: object) -> None:
    if column not in columns:
        raise SettingsError(f"data.text_column: no {column!r} in {where}, which has: {', '.join(columns)}")


def blocks(text: str) -> Iterator[str]:
    """Cut a text at line ends into blocks of at least :data:`BLOCK` characters, the last one shorter."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + BLOCK - 1) + 1 or len(text)
        yield text[start:end]
        start = end


def in_validation(key: str, fraction: float) -> bool:
    """Whether the documents of a group (or a single one) with this key belong to validation: a hash decides."""
    return int(sha256(SPLIT_SALT + key)[:16], 16) < fraction * 16**16


class Spool:
    """Texts in an unnamed file below ``TMPDIR``, so that a corpus need not fit in memory."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, closed with its last reader, and with that deleted
        weakref.finalize(self, self.file.close)
        self.size = 0

    def add(self, text: str) -> slice:
        """Where the text went: what ``read`` takes."""
        data = text.encode()
        try:
            self.file.write(data)
        except OSError as error:
            raise SettingsError(f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a larger disk") from None
        self.size += len(data)
        return slice(self.size - len(data), self.size)

    def read(self, place: slice) -> str:
        self.file.seek(place.start)
        return self.file.read(place.stop - place.start).decode()


@dataclass(frozen=True)
class SpooledTexts:
    """Some texts of a spool, in an order of their own."""

    spool: Spool
    places: list[slice]

    def __iter__(self) -> Iterator[str]:
        return map(self.spool.read, self.places)


def local_corpus(settings: DataSettings) -> Corpus:
    """Read, remove exact copies, split and shuffle.

    The first of several equal texts stays, so no text is in both parts.
    """
    skipped: Counter[str] = Counter()
    spool = Spool()
    kept: dict[str, tuple[str, slice]] = {}  # hash of a text: its group and place
    total, empty = 0, True
    try:
        for total, document in enumerate(documents(settings, skipped), 1):  # noqa: B007, read below
            if (key := sha256(document.text)) not in kept:
                kept[key] = sys.intern(document.group), spool.add(document.text)
                empty &= not document.text.strip()
    except OSError as error:
        raise SettingsError(f"data.corpus: {settings.corpus!r} cannot be read ({error.strerror or error})") from None
    if empty:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "nothing skipped"
        raise SettingsError(f"data.corpus: {settings.corpus!r} holds no text ({total} documents; skipped: {reasons})")
    parts: dict[bool, list[slice]] = {False: [], True: []}
    for key, (group, place) in kept.items():
        split_key = group if settings.split_by == "group" else key
        parts[in_validation(split_key, settings.validation_fraction)].append(place)
    for places in parts.values():
        random.Random(0).shuffle(places)
    facts: dict[str, Any] = {"duplicates": total - len(kept), "skipped": dict(sorted(skipped.items()))}
    if settings.corpus == "python-source":
        facts["packages"] = {name: importlib.metadata.version(name) for name in PYTHON_SOURCE_PACKAGES}
    identity = digest([[key, group] for key, (group, _) in kept.items()], 64)
    train = SpooledTexts(spool, parts[False][: settings.max_documents])
    validation = SpooledTexts(spool, parts[True][: settings.max_validation_documents])
    return Corpus(identity, train, validation, facts)


@dataclass(frozen=True)
class Column:
    """One text column of a Hugging Face data set, read a batch at a time."""

    dataset: Any
    name: str

    def __iter__(self) -> Iterator[str]:
        for batch in self.dataset.select_columns([self.name]).iter(batch_size=BATCH):
            yield from (text for text in batch[self.name] if text is not None)


def codeparrot_corpus(settings: DataSettings) -> Corpus:
    """The paper's two data sets, each shuffled with seed 0 and cut to its first documents; copies stay, as there."""
    import datasets

    def part(name: str, files: str | None, count: int | None) -> Any:
        try:
            if files is None:
                found = datasets.load_dataset(CODEPARROT[name], split="train")
            else:
                kind = "parquet" if files.endswith(".parquet") else "json"
                found = datasets.load_dataset(kind, data_files=files, split="train")
        except Exception as error:  # of any library below: whatever it was, the remedy is the same
            raise unavailable(f"the data set {files or CODEPARROT[name]}", error) from error
        check_column(settings.text_column, found.column_names, files or CODEPARROT[name])
        shuffled = found.shuffle(seed=0)
        return shuffled.select(range(min(count or len(shuffled), len(shuffled))))

    train = part("train", settings.train_files, settings.max_documents)
    validation = part("validation", settings.validation_files, settings.max_validation_documents)
    identity = digest([train._fingerprint, validation._fingerprint], 64)
    column = settings.text_column
    return Corpus(identity, Column(train, column), Column(validation, column), {"duplicates": None, "skipped": {}})


def unavailable(what: str, error: Exception) -> SettingsError:
    reason = (str(error).strip().splitlines() or [""])[0]
    return SettingsError(
        f"data: {what} cannot be loaded ({type(error).__name__}: {reason}); download it once with a network, or set "
        "HF_HOME to a cache that holds it, or give local copies as data.train_files, data.validation_files and "
        "data.tokenizer"
    )


def load_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """A tokenizer from a ``tokenizer.json``, a directory or the Hub, whose vocabulary must be ``vocab_size``."""
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
    except Exception as error:  # tokenizers raises plain Exception, the Hub's clients what they like
        raise unavailable(f"the tokenizer {name}", error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.get_vocab_size() != vocab_size:
        found = tokenizer.get_vocab_size()
        raise SettingsError(f"data.vocab_size: {vocab_size} differs from the {found} tokens of data.tokenizer {name}")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` tokens with :data:`END_OF_TEXT` as number 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()  # every byte has a token, seen in training or not
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        found = tokenizer.get_vocab_size()
        raise SettingsError(f"data.vocab_size: the training part reaches {found} of {vocab_size} tokens, being small")
    return tokenizer


def cut(token_ids: Iterable[Sequence[int]], context: int, end_of_text: int | None = None) -> Iterator[np.ndarray]:
    """Cut tokenised documents into sequences, given as arrays of shape (n, T), n > 0.

    Without ``end_of_text`` each document is cut by itself; with it they are joined by that token first. What is left
    over at the end, fewer than T tokens, is dropped.
    """
    tail: Sequence[int] = []
    for index, ids in enumerate(token_ids):
        if end_of_text is not None:
            ids = [*tail, *([end_of_text] if index else []), *ids]
        n = len(ids) // context
        tail = ids[n * context :]
        if n:
            yield np.array(ids[: n * context], dtype=TOKEN).reshape(n, context)


def set_malloc(option: int, value: int) -> None:
    """Set an option of glibc's malloc for this process (malloc.h numbers them); nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(option, value)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts of together at least ``BATCH_TEXT`` characters, the last one shorter."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_TEXT:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, Encoding]]:
    """Each text with its encoding. While one batch is used the next is encoded, in a thread that needs no Python."""
    with ThreadPoolExecutor(1) as pool:

        def job_of(batch: list[str]) -> tuple[list[str], Future[list[Encoding]]]:
            return batch, pool.submit(tokenizer.encode_batch_fast, batch, add_special_tokens=False)

        ahead = map(job_of, batches(texts))
        job = next(ahead, None)
        while job:
            following = next(ahead, None)
            yield from zip(job[0], job[1].result(), strict=True)
            job = following


def write_part(path: Path, texts: Iterable[str], tokenizer: Tokenizer, settings: DataSettings) -> dict[str, Any]:
    """Tokenise ``texts`` batch by batch into the token file ``path``; returns its counts and hashes."""
    end_of_text = None
    if settings.packing == "packed" and (end_of_text := tokenizer.token_to_id(END_OF_TEXT)) is None:
        raise SettingsError(f"data.packing: packed needs a tokenizer with {END_OF_TEXT}, which data.tokenizer lacks")
    count: Counter[str] = Counter()
    content = hashlib.sha256()

    def encoded() -> Iterator[list[int]]:
        for text, encoding in encode(texts, tokenizer):
            data = text.encode()
            content.update(hashlib.sha256(data).digest())
            count.update(documents=1, bytes=len(data), tokens=len(encoding.ids))
            yield encoding.ids

    with open(path, "wb") as file:
        for rows in cut(encoded(), settings.context, end_of_text):
            file.write(rows.tobytes())
            count["sequences"] += len(rows)
    if not count["sequences"]:
        raise SettingsError(
            f"data: the {path.stem} part ({count['documents']} documents, {count['tokens']} tokens) gives no sequence "
            f"of {settings.context} tokens; change data.validation_fraction, data.context, data.packing or the corpus"
        )
    kept = {key: count[key] for key in ("documents", "bytes", "tokens", "sequences")}
    return {**kept, "sha256": file_sha256(path), "corpus_hash": content.hexdigest()}


def order_by_hash(path: Path, context: int) -> None:
    """Reorder the sequences of a token file by their hash, so that any first few of them are a fair sample."""
    rows = np.memmap(path, dtype=TOKEN, mode="r").reshape(-1, context)
    keys = np.array([hashlib.sha256(row.tobytes()).digest() for row in rows])  # (N,) 32 bytes
    order = keys.argsort(kind="stable")
    reordered = path.with_suffix(".ordered")
    with open(reordered, "wb") as file:
        for start in range(0, len(order), BATCH):
            file.write(rows[order[start : start + BATCH]].tobytes())
    os.replace(reordered, path)


def overlap(train: Iterable[str], validation: Iterable[str], shortest: int = 20, most: int = 2**16) -> float:
    """Share of the distinct lines of validation, stripped and at least 20 characters long, that train has too.

    Of more than ``most`` distinct lines a sample chosen by a hash of the line stands for all.
    """

    def lines(text: str) -> Iterator[str]:
        return (line for line in map(str.strip, text.splitlines()) if len(line) >= shortest)

    own: set[str] = set()
    every = 1  # one line in so many is kept
    for text in validation:
        own.update(line for line in lines(text) if every == 1 or zlib.crc32(line.encode()) % every == 0)
        while len(own) > most:
            every *= 2
            own = {line for line in own if zlib.crc32(line.encode()) % every == 0}
    unseen = set(own)
    for text in train:
        unseen.difference_update(lines(text))
    return 1 - len(unseen) / len(own) if own else 0.0


@dataclass(frozen=True)
class TokenData:
    """A directory of token files and its ``meta.json``."""

    directory: Path
    meta: dict[str, Any]

    def _map(self, part: str) -> np.ndarray:
        shape = (self.meta[part]["sequences"], self.meta["settings"]["context"])
        return np.memmap(self.directory / f"{part}.bin", dtype=TOKEN, mode="r", shape=shape)

    @property
    def train(self) -> np.ndarray:
        """(N, T) 16-bit token numbers, read-only and memory-mapped."""
        return self._map("train")

    @property
    def validation(self) -> np.ndarray:
        """(N, T) likewise, in an order such that its first sequences are a fair sample of all."""
        return self._map("validation")

    @property
    def tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name the tokens themselves, wherever and however they were made."""
        return digest([self.meta[part]["sha256"] for part in PARTS])


def cache_dir() -> Path:
    """Where token directories live: the environment's ``NFCORE_DATA``, else ``data/tokens`` of the project."""
    return Path(os.environ.get("NFCORE_DATA") or project_root() / "data" / "tokens")


def prepare(settings: DataSettings, verify: bool = False) -> TokenData:
    """Token files for these settings, made unless the same corpus and tokenizer were tokenised before.

    ``verify`` compares the hashes of existing files with the recorded ones, not only their sizes.

    Raises:
        SettingsError: a corpus or tokenizer that cannot be had, is empty, too small or of the wrong size; token files
            that cannot be written or differ from their record.
    """
    codeparrot = settings.corpus == "codeparrot"
    corpus = codeparrot_corpus(settings) if codeparrot else local_corpus(settings)
    name = settings.tokenizer or (CODEPARROT["tokenizer"] if codeparrot else None)
    tokenizer = load_tokenizer(name, settings.vocab_size) if name else None
    key = digest([FORMAT, asdict(settings), corpus.identity, sha256(tokenizer.to_str()) if tokenizer else None], 16)
    directory = cache_dir() / key
    if not directory.exists():
        try:
            write(directory, corpus, tokenizer or train_tokenizer(corpus.train, settings.vocab_size), settings)
        except OSError as error:
            raise SettingsError(f"{directory}: token files cannot be written ({error.strerror or error})") from error
    return open_tokens(directory, verify)


def write(directory: Path, corpus: Corpus, tokenizer: Tokenizer, settings: DataSettings) -> None:
    """Make the token directory beside its final place and move it there whole, so that it is complete or absent."""
    # M_ARENA_MAX: encodings are made in some threads and freed in another, which would leave holes in an arena of each.
    set_malloc(-8, 2)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text: only we end documents
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (unfinished / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        parts = {
            part: write_part(unfinished / f"{part}.bin", getattr(corpus, part), tokenizer, settings) for part in PARTS
        }
        order_by_hash(unfinished / "validation.bin", settings.context)
        parts["validation"]["sha256"] = file_sha256(unfinished / "validation.bin")
        libraries = ["numpy", "tokenizers", *(["datasets"] if settings.corpus == "codeparrot" else [])]
        versions = {name: importlib.metadata.version(name) for name in libraries}
        meta = {
            "format": FORMAT,
            "settings": asdict(settings),
            "corpus_hash": digest([parts[part].pop("corpus_hash") for part in PARTS], 64),
            "tokenizer_hash": file_sha256(unfinished / "tokenizer.json"),
            **parts,
            "validation_overlap": overlap(corpus.train, corpus.validation),
            **corpus.facts,
            "versions": {"python": platform.python_version(), "nfcore": __version__, **versions},
        }
        (unfinished / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        unfinished.chmod(0o755)  # mkdtemp's directory is for its owner alone
        try:
            os.replace(unfinished, directory)
        except OSError:
            if not directory.exists():  # else another process made the same files meanwhile
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def open_tokens(directory: Path, verify: bool = False) -> TokenData:
    """The token files in ``directory``, checked against their record: sizes always, hashes if ``verify``."""
    remedy = "delete the directory to make it again"
    try:
        meta = json.loads((directory / "meta.json").read_text())
        hashes = {"tokenizer.json": meta["tokenizer_hash"], **{f"{part}.bin": meta[part]["sha256"] for part in PARTS}}
        sizes = {f"{p}.bin": meta[p]["sequences"] * meta["settings"]["context"] * TOKEN.itemsize for p in PARTS}
        for name, size in sizes.items():
            if (found := (directory / name).stat().st_size) != size:
                raise SettingsError(f"{directory / name}: {found} bytes, recorded were {size}; {remedy}")
        for name in hashes if verify else ():
            if file_sha256(directory / name) != hashes[name]:
                raise SettingsError(f"{directory / name}: differs from the recorded SHA-256; {remedy}")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SettingsError(f"{directory}: incomplete or unreadable token files ({error}); {remedy}") from None
    return TokenData(directory, meta)


class Sequences:
    """A map-style data set over an array (N, T): item i is a 64-bit array (T,)."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.tokens[index], dtype=np.int64)


def collate(items: Sequence[np.ndarray]) -> dict[str, Any]:
    """A batch for the model: ``input_ids`` (B, T), and the same tensor as ``labels``, which the model shifts."""
    import torch

    ids = torch.from_numpy(np.stack(items))
    return {"input_ids": ids, "labels": ids}
