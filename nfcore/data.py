"""From a corpus to memory-mapped token files: documents, split, tokenizer, sequences.

:func:`prepare` does everything and answers with :class:`TokenData`. Token files are little-endian integers of shape
(N, T), N sequences of T = ``context`` tokens, in a directory named by a hash of everything that made them; of 16 bits
where the vocabulary fits them, else of 32.

Memory does not grow with the corpus but for some 100 bytes a document. A corpus is read and tokenised in batches, by
several processes if asked. What is finished of a token file stays when the process is killed: a journal has the hashes
of each batch's texts and tokens, and the next call goes on where both still agree.
"""

from __future__ import annotations

import base64
import codecs
import ctypes
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import weakref
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PositiveInt

from nfcore import __version__
from nfcore.settings import DataSettings, SettingsError, check_type, digest, identity, project_root


if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1  # of the token files; part of the cache key, so raise it whenever the same settings give other bytes
PARTS = ("train", "validation")
END_OF_TEXT = "<|endoftext|>"
BLOCK = 4096  # characters: a single text file is cut into documents of this size, at line ends
LONGEST = 2**24  # characters or bytes of a document: a longer text is cut at line ends, a longer record left out
BATCH = 256  # records read, or sequences written, at once
BATCH_TEXT = 2**20  # characters tokenised at once: an encoding takes a hundred times the memory of its tokens
SHUFFLE_WINDOW = 10_000  # documents of a stream among which the next one is drawn
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


def token_type(vocab_size: int) -> str:
    """The dtype of the token files: numbers 0..65535 fit 16 bits."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


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
    path = expanded("data.corpus", settings.corpus)
    if settings.corpus == "python-source":
        for package in PYTHON_SOURCE_PACKAGES:
            yield from package_documents(package, skipped)
    elif path.is_dir():
        yield from folder_documents(Path(os.path.realpath(path)), skipped)
    elif not path.is_file():
        raise SettingsError(f"data.corpus: {settings.corpus!r} is not python-source, codeparrot or an existing path")
    else:
        readers = {".jsonl": json_texts, ".json": json_texts, ".parquet": parquet_texts}
        read = readers.get(path.suffix)
        texts = read(path, settings.text_column, skipped) if read else file_texts(path, skipped, BLOCK)
        for index, text in enumerate(texts):
            if isinstance(text, str) and len(text) > LONGEST:
                skipped["too long"] += 1
                continue
            try:
                yield Document(text, sha256(text), f"{path.name}:{index}")
            except (AttributeError, UnicodeEncodeError):  # null, a number; half a surrogate pair
                skipped["not text"] += 1


def expanded(where: str, path: str) -> Path:
    """The path with ``~`` replaced by the home that it stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{where}: {path!r}: {error}") from None


def file_texts(path: Path, skipped: Counter[str], least: int) -> Iterator[str]:
    """A UTF-8 file, line ends untouched, in pieces of at least so many characters, the last one shorter.

    A piece ends where a line does, unless that is longer than ``LONGEST``. A file that is binary or cannot be read
    gives none and is counted. It is read twice, so that this is known before its first piece.
    """
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with path.open("rb") as binary:
            while chunk := binary.read(2**20):
                if b"\0" in chunk:
                    skipped["binary"] += 1
                    return
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        with path.open(encoding="utf-8", newline="\n") as file:

            def piece() -> str:
                return file.read(least - 1) + file.readline(LONGEST - least + 1)

            yield piece()  # an empty file is a document too
            yield from iter(piece, "")
    except UnicodeDecodeError:
        skipped["binary"] += 1
    except OSError:
        skipped["unreadable"] += 1


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
        else:
            for text in file_texts(path, skipped, LONGEST):
                yield Document(text, "/".join(file.parts[:-1][:2]) or package, file.as_posix())


def folder_documents(root: Path, skipped: Counter[str]) -> Iterator[Document]:
    """Every text file below ``root`` but those in hidden directories and symbolic links that lead outside."""
    for folder, below, names in os.walk(root, onerror=lambda _: skipped.update(["unreadable"])):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for path in sorted(Path(folder) / name for name in names):
            relative = path.relative_to(root)
            if not Path(os.path.realpath(path)).is_relative_to(root):
                skipped["link outside"] += 1
            elif path.exists() and not path.is_file():
                skipped["not a file"] += 1  # a pipe would block
            else:
                for text in file_texts(path, skipped, LONGEST):
                    yield Document(text, relative.parts[0], relative.as_posix())


def json_texts(path: Path, column: str, skipped: Counter[str]) -> Iterator[Any]:
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            if len(line) > LONGEST:
                skipped["too long"] += 1
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST)
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
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
            for batch in file.iter_batches(BATCH, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, IndexError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SettingsError(f"data.corpus: {path} is not a parquet file that can be read ({reason})") from None


def check_column(column: str, columns: Sequence[str], where: object) -> None:
    if column not in columns:
        raise SettingsError(f"data.text_column: no {column!r} in {where}, which has: {', '.join(columns)}")


def in_validation(key: str, fraction: float) -> bool:
    """Whether the documents of a group (or a single one) with this key belong to validation: a hash decides."""
    # A name of a file need not be valid UTF-8.
    hashed = hashlib.sha256((SPLIT_SALT + key).encode("utf-8", "surrogateescape")).hexdigest()
    return int(hashed[:16], 16) < fraction * 16**16


class Spool:
    """Texts, numbered from 0, in an unnamed file below ``TMPDIR``, so that a corpus need not fit in memory."""

    def __init__(self) -> None:
        try:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115, closed with its last reader, and with that deleted
        except OSError as error:
            raise self.full(error) from None
        weakref.finalize(self, self.file.close)
        self.ends = array("q", [0])

    def add(self, text: str) -> int:
        """The number that ``read`` takes."""
        data = text.encode()
        try:
            self.file.write(data)
        except OSError as error:
            raise self.full(error) from None
        self.ends.append(self.ends[-1] + len(data))
        return len(self.ends) - 2

    def read(self, number: int) -> str:
        start, end = self.ends[number : number + 2]
        try:
            self.file.seek(start)
            return self.file.read(end - start).decode()
        except OSError as error:  # seeking writes what is still in memory
            raise self.full(error) from None

    def full(self, error: OSError) -> SettingsError:
        where = tempfile.tempdir or "TMPDIR"
        return SettingsError(
            f"{where}: {error.strerror or error}; a copy of the corpus goes there: free as much, or set TMPDIR to a "
            "larger disk"
        )


@dataclass(frozen=True)
class SpooledTexts:
    """Some texts of a spool, in an order of their own."""

    spool: Spool
    numbers: MutableSequence[int]

    def __iter__(self) -> Iterator[str]:
        return map(self.spool.read, self.numbers)


def local_corpus(settings: DataSettings) -> Corpus:
    """Read, remove exact copies, split and shuffle.

    The first of several equal texts stays, so no text is in both parts.
    """
    skipped: Counter[str] = Counter()
    spool = Spool()
    seen: set[bytes] = set()  # halves of hashes, which are the memory that a document takes
    parts = {False: array("q"), True: array("q")}
    total, empty = 0, True
    hashed = hashlib.sha256(b"[")  # of the JSON list of every text's hash and group
    try:
        for total, document in enumerate(documents(settings, skipped), 1):  # noqa: B007, read below
            key = sha256(document.text)
            if (half := bytes.fromhex(key[:32])) in seen:
                continue
            hashed.update(((", " if seen else "") + json.dumps([key, document.group])).encode())
            seen.add(half)
            split_key = document.group if settings.split_by == "group" else key
            parts[in_validation(split_key, settings.validation_fraction)].append(spool.add(document.text))
            empty &= not document.text.strip()
    except OSError as error:
        raise SettingsError(f"data.corpus: {settings.corpus!r} cannot be read ({error.strerror or error})") from None
    hashed.update(b"]")
    if empty:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "nothing skipped"
        raise SettingsError(f"data.corpus: {settings.corpus!r} holds no text ({total} documents; skipped: {reasons})")
    for numbers in parts.values():
        random.Random(0).shuffle(numbers)
    facts: dict[str, Any] = {"duplicates": total - len(seen), "skipped": dict(sorted(skipped.items()))}
    if settings.corpus == "python-source":
        facts["packages"] = {name: importlib.metadata.version(name) for name in PYTHON_SOURCE_PACKAGES}
    train = SpooledTexts(spool, parts[False][: settings.max_documents])
    validation = SpooledTexts(spool, parts[True][: settings.max_validation_documents])
    return Corpus(hashed.hexdigest(), train, validation, facts)


@dataclass(frozen=True)
class Column:
    """One text column of a Hugging Face data set, on disk or streamed, read a batch at a time."""

    dataset: Any
    name: str
    where: str

    def __iter__(self) -> Iterator[str]:
        try:
            for batch in self.dataset.select_columns([self.name]).iter(batch_size=BATCH):
                for text in batch[self.name]:
                    if isinstance(text, str):
                        yield text
                    elif text is not None:
                        raise SettingsError(
                            f"data.text_column: {self.name!r} of {self.where} is not text: {text!r:.60}"
                        )
        except SettingsError:
            raise
        except Exception as error:  # of a broken file, a lost network
            raise unavailable(f"the data set {self.where}", error) from error


def codeparrot_corpus(settings: DataSettings) -> Corpus:
    """The paper's two data sets, each shuffled with seed 0 and cut to its first documents; copies stay, as there.

    Without ``streaming`` the whole data set is downloaded once and lies on the disk in a form that is read without
    taking memory. With it only as much is downloaded as the first documents need, at each tokenising anew. The order
    is then another: of the files, and within a window of ``SHUFFLE_WINDOW`` documents. Tokens made from the Hub's
    stream are found again by the settings alone, since to ask whether it changed would be to read it again.
    """
    import datasets

    streaming, column = settings.streaming, settings.text_column

    def part(name: str, files: str | None, count: int | None) -> tuple[Column, str]:
        where = files or CODEPARROT[name]
        options: dict[str, Any] = {"split": "train", "streaming": streaming}
        try:
            if files is None:
                found = datasets.load_dataset(where, **options)
            else:
                kind = "parquet" if files.endswith(".parquet") else "json"
                found = datasets.load_dataset(kind, data_files=files, **options)
            columns = found.column_names or list(next(iter(found), {}))  # a stream may not know before it is read
        except Exception as error:  # of any library below: whatever it was, the remedy is the same
            raise unavailable(f"the data set {where}", error) from error
        check_column(column, columns, where)
        if streaming:
            shuffled = found.shuffle(seed=0, buffer_size=SHUFFLE_WINDOW)
            fingerprint = file_sha256(Path(files)) if files and Path(files).is_file() else where
            return Column(shuffled.take(count) if count else shuffled, column, where), fingerprint
        shuffled = found.shuffle(seed=0)
        selected = shuffled.select(range(min(count or len(shuffled), len(shuffled))))
        return Column(selected, column, where), selected._fingerprint

    train, of_train = part("train", settings.train_files, settings.max_documents)
    validation, of_validation = part("validation", settings.validation_files, settings.max_validation_documents)
    return Corpus(digest([of_train, of_validation], 64), train, validation, {"duplicates": None, "skipped": {}})


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

    path = expanded("data.tokenizer", name)
    try:
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # tokenizers raises plain Exception, the Hub's clients what they like
        raise unavailable(f"the tokenizer {name}", error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.get_vocab_size() != vocab_size:
        found = tokenizer.get_vocab_size()
        raise SettingsError(f"data.vocab_size: {vocab_size} differs from the {found} tokens of data.tokenizer {name}")
    if (last := max(tokenizer.get_vocab().values())) >= vocab_size:
        raise SettingsError(f"data.tokenizer: {name} numbers a token {last}, which is not below {vocab_size}, its size")
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


def token_ids(
    tokenizer: Tokenizer, context: int, end_of_text: int | None, dtype: str, texts: list[str], first: bool
) -> tuple[bytes, int]:
    """What some documents add to a token file, as its bytes, and how many tokens they have.

    Without ``end_of_text`` each document is cut to a multiple of ``context`` tokens; with it nothing is cut, and that
    token stands before each document but the ``first`` of its part.
    """
    pieces, count = [], 0
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        ids = encoding.ids
        count += len(ids)
        if end_of_text is None:
            del ids[len(ids) // context * context :]
        elif not first:
            ids.insert(0, end_of_text)
        first = False
        pieces.append(np.array(ids, dtype=dtype).tobytes())
    return b"".join(pieces), count


_tokenizer: Tokenizer  # of a worker process


def _start_worker(tokenizer: str, threads: int) -> None:
    from tokenizers import Tokenizer

    global _tokenizer
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when the tokenizer's own threads start
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer = Tokenizer.from_str(tokenizer)
    _tokenizer.encode_special_tokens = True


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _token_ids(*arguments: Any) -> tuple[bytes, int]:
    return token_ids(_tokenizer, *arguments)


@contextmanager
def workers(tokenizer: Tokenizer, processes: int) -> Iterator[Callable[..., Future[tuple[bytes, int]]]]:
    """What starts :func:`token_ids` and gives its future. One process has the tokenizer's threads on all cores, but
    one at a time makes numbers of what they return; several share the cores and do all of it at once."""
    if processes == 1:
        with ThreadPoolExecutor(2) as threads:
            yield lambda *arguments: threads.submit(token_ids, tokenizer, *arguments)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    start = (tokenizer.to_str(), max(1, cores // processes))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _start_worker, start) as pool:
        yield lambda *arguments: pool.submit(_token_ids, *arguments)


class GrowingFile:
    """A token file that grows batch by batch; its journal, a JSON line a batch, says what each was made of and gave.

    An entry is written after its tokens. When a file is opened again it is cut to the entries whose tokens are there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.entries = path, list[dict[str, Any]]()
        path.touch()
        self.file = path.open("r+b")
        self.journal = path.with_suffix(".journal").open("a+", encoding="utf-8", errors="replace")
        self.journal.seek(0)
        for line in self.journal:
            try:
                entry = json.loads(line)
                if entry != self.entry(entry["texts"], self.file.read(entry["bytes"]), entry["tokens"]):
                    break
            except (ValueError, LookupError, TypeError, OverflowError):  # the end of one whose writer was killed
                break
            self.entries.append(entry)
        self.rewind(len(self.entries))

    @staticmethod
    def entry(texts: str, data: bytes, tokens: int) -> dict[str, Any]:
        seal = hashlib.sha256(f"{texts} {tokens} ".encode() + data).hexdigest()
        return {"texts": texts, "tokens": tokens, "bytes": len(data), "sha256": seal}

    def has(self, number: int, texts: str) -> bool:
        """Whether this batch is there and of the texts with this hash; if of others, it and what follows is cut off."""
        if number < len(self.entries) and self.entries[number]["texts"] != texts:
            self.rewind(number)
        return number < len(self.entries)

    def rewind(self, count: int) -> None:
        """Forget all but the first ``count`` batches."""
        del self.entries[count:]
        self.file.seek(sum(entry["bytes"] for entry in self.entries))
        self.file.truncate()
        self.journal.truncate(0)  # whatever is written goes to its end
        self.journal.writelines(json.dumps(entry) + "\n" for entry in self.entries)
        self.journal.flush()

    def add(self, texts: str, data: bytes, tokens: int) -> None:
        """The batch of texts with this hash gave these bytes."""
        self.file.write(data)
        self.file.flush()
        self.entries.append(self.entry(texts, data, tokens))
        self.journal.write(json.dumps(self.entries[-1]) + "\n")
        self.journal.flush()

    def close(self) -> None:
        self.file.close()
        self.journal.close()


def write_part(
    path: Path, texts: Iterable[str], tokenizer: Tokenizer, settings: DataSettings, processes: int = 1
) -> dict[str, Any]:
    """Tokenise ``texts`` into the token file ``path``, going on where it ends; returns its counts and hashes."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT) if settings.packing == "packed" else None
    dtype = token_type(settings.vocab_size)
    count: Counter[str] = Counter()
    content = hashlib.sha256()
    waiting: deque[tuple[str, Future[tuple[bytes, int]]]] = deque()
    with closing(GrowingFile(path)) as file, workers(tokenizer, processes) as submit:

        def add_first() -> None:
            texts_hash, future = waiting.popleft()
            file.add(texts_hash, *future.result())

        for batch in batches(texts):
            data = [text.encode() for text in batch]
            hashes = b"".join(hashlib.sha256(document).digest() for document in data)
            content.update(hashes)
            texts_hash = hashlib.sha256(hashes).hexdigest()
            if not file.has(count["batches"], texts_hash):
                first = count["batches"] == 0
                waiting.append((texts_hash, submit(settings.context, end_of_text, dtype, batch, first)))
            count.update(batches=1, documents=len(data), bytes=sum(map(len, data)))
            if len(waiting) > processes + 1:
                add_first()
        while waiting:
            add_first()
        file.has(count["batches"], "the end")
        count["tokens"] = sum(entry["tokens"] for entry in file.entries)
    sequences, rest = divmod(path.stat().st_size, settings.context * np.dtype(dtype).itemsize)
    os.truncate(path, path.stat().st_size - rest)
    kept = {key: count[key] for key in ("documents", "bytes", "tokens")}
    return {**kept, "sequences": sequences, "sha256": file_sha256(path), "corpus_hash": content.hexdigest()}


def order_by_hash(path: Path, width: int) -> None:
    """Reorder the sequences of a token file, each of ``width`` bytes, by their hash, so that any first few of them are
    a fair sample."""
    reordered = path.with_suffix(".ordered")
    with open(path, "rb", buffering=0) as file, open(reordered, "wb") as target:
        rows = iter(lambda: file.read(width), b"")
        keys = np.fromiter((hashlib.sha256(row).digest() for row in rows), dtype="S32")  # (N,)
        for number in keys.argsort(kind="stable"):
            file.seek(number * width)
            target.write(file.read(width))
    os.replace(reordered, path)


class Overlap:
    """Share of the distinct lines of validation, stripped and at least 20 characters long, that train has too.

    It watches both parts pass, validation first. Of more than ``most`` distinct lines a sample chosen by a hash of the
    line stands for all.
    """

    def __init__(self, shortest: int = 20, most: int = 2**16) -> None:
        self.shortest, self.most = shortest, most
        self.every = 1  # one line in so many is kept
        self.own, self.unseen = set[str](), set[str]()

    def lines(self, text: str) -> Iterator[str]:
        return (line for line in map(str.strip, text.splitlines()) if len(line) >= self.shortest)

    def validation(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.own.update(line for line in self.lines(text) if self.chosen(line))
            while len(self.own) > self.most:
                self.every *= 2
                self.own = set(filter(self.chosen, self.own))
            yield text
        self.unseen = set(self.own)

    def chosen(self, line: str) -> bool:
        return self.every == 1 or zlib.crc32(line.encode()) % self.every == 0

    def train(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.unseen.difference_update(self.lines(text))
            yield text

    @property
    def share(self) -> float:
        return 1 - len(self.unseen) / len(self.own) if self.own else 0.0


@dataclass(frozen=True)
class TokenData:
    """A directory of token files and its ``meta.json``."""

    directory: Path
    meta: dict[str, Any]

    def _map(self, part: str) -> np.ndarray:
        shape = (self.meta[part]["sequences"], self.meta["settings"]["context"])
        return np.memmap(self.directory / f"{part}.bin", dtype=self.meta.get("dtype", "<u2"), mode="r", shape=shape)

    @property
    def train(self) -> np.ndarray:
        """(N, T) token numbers of 16 or 32 bits, read-only and memory-mapped."""
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


def prepare(settings: DataSettings, processes: int = 1) -> TokenData:
    """Token files for these settings, made unless the same corpus and tokenizer were tokenised before.

    ``processes``: how many tokenise at once; the files are the same. With more than one a script has to call this
    below ``if __name__ == "__main__"``. If another process makes the same files, this one waits for them.

    Raises:
        SettingsError: a corpus or tokenizer that cannot be had, is empty, too small or of the wrong size; token files
            that cannot be written or differ from their recorded hashes.
    """
    check_type("processes", processes, PositiveInt)
    codeparrot = settings.corpus == "codeparrot"
    corpus = codeparrot_corpus(settings) if codeparrot else local_corpus(settings)
    name = settings.tokenizer or (CODEPARROT["tokenizer"] if codeparrot else None)
    tokenizer = load_tokenizer(name, settings.vocab_size) if name else None
    if tokenizer and settings.packing == "packed" and tokenizer.token_to_id(END_OF_TEXT) is None:
        raise SettingsError(f"data.packing: packed needs a tokenizer with {END_OF_TEXT}, which data.tokenizer lacks")
    key = digest([FORMAT, identity(settings), corpus.identity, sha256(tokenizer.to_str()) if tokenizer else None], 16)
    directory = cache_dir() / key
    try:
        if not directory.exists():
            with only_maker(directory):
                if not directory.exists():
                    write(directory, corpus, tokenizer, settings, processes)
    except OSError as error:
        raise SettingsError(
            f"{directory}: token files cannot be written ({error.strerror or error}); free space on that disk, or set "
            f"NFCORE_DATA to another. The same command goes on with what is in {unfinished(directory).name}, which may "
            "be deleted"
        ) from error
    except BrokenExecutor:
        raise SettingsError(
            f"processes: one of {processes} ended, killed for its memory or, in a script, without "
            '`if __name__ == "__main__"`; the same command with fewer goes on'
        ) from None
    return open_tokens(directory)


def unfinished(directory: Path) -> Path:
    """Where a token directory is made."""
    return directory.with_name(f".{directory.name}.unfinished")


@contextmanager
def only_maker(directory: Path) -> Iterator[None]:
    """Hold the lock of a token directory, which ends with the process."""
    from filelock import FileLock, Timeout

    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{directory}: waits for another process that makes it", file=sys.stderr)
        lock.acquire()
    try:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever has opened it will find the directory
    finally:
        lock.release()


def write(
    directory: Path, corpus: Corpus, tokenizer: Tokenizer | None, settings: DataSettings, processes: int = 1
) -> None:
    """Make the token directory beside its final place and move it there whole, so that it is complete or absent.

    What is made stays for the next call if this one is killed.
    """
    # M_ARENA_MAX: encodings are made in some threads and freed in another, which would leave holes in an arena of each.
    set_malloc(-8, 2)
    place = unfinished(directory)
    file = place / "tokenizer.json"
    if tokenizer is None and file.exists():
        tokenizer = load_tokenizer(str(file), settings.vocab_size)  # trained before an interruption
    else:
        tokenizer = tokenizer or train_tokenizer(corpus.train, settings.vocab_size)
        place.mkdir(exist_ok=True)
        file.with_suffix(".partial").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        os.replace(file.with_suffix(".partial"), file)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text: only we end documents
    overlap = Overlap()
    texts = {"validation": overlap.validation(corpus.validation), "train": overlap.train(corpus.train)}
    parts = {part: write_part(place / f"{part}.bin", texts[part], tokenizer, settings, processes) for part in texts}
    for name, part in parts.items():
        if not part["sequences"]:
            shutil.rmtree(place)
            raise SettingsError(
                f"data: the {name} part ({part['documents']} documents, {part['tokens']} tokens) gives no sequence of "
                f"{settings.context} tokens; change data.validation_fraction, data.context, data.packing or the corpus"
            )
    validation = place / "validation.bin"
    order_by_hash(validation, validation.stat().st_size // parts["validation"]["sequences"])
    parts["validation"]["sha256"] = file_sha256(validation)
    libraries = ["numpy", "tokenizers", *(["datasets"] if settings.corpus == "codeparrot" else [])]
    versions = {name: importlib.metadata.version(name) for name in libraries}
    meta = {
        "format": FORMAT,
        "dtype": token_type(settings.vocab_size),
        "settings": settings.to_dict(),
        "corpus_hash": digest([parts[part].pop("corpus_hash") for part in PARTS], 64),
        "tokenizer_hash": file_sha256(file),
        **{name: parts[name] for name in PARTS},
        "validation_overlap": overlap.share,
        **corpus.facts,
        "versions": {"python": platform.python_version(), "nfcore": __version__, **versions},
    }
    (place / "meta.json").write_text(json.dumps({**meta, "meta_hash": digest(meta, 64)}, indent=1) + "\n")
    for name in PARTS:
        (place / name).with_suffix(".journal").unlink()
    os.replace(place, directory)


def open_tokens(directory: Path) -> TokenData:
    """The token files in ``directory``, checked against their record: sizes and hashes.

    Hashing runs at the speed of a disk or faster, and training reads all of it anyway.
    """
    remedy = "delete the directory to make it again"
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        hashes = {"tokenizer.json": meta["tokenizer_hash"], **{f"{part}.bin": meta[part]["sha256"] for part in PARTS}}
        width = meta["settings"]["context"] * np.dtype(meta.get("dtype", "<u2")).itemsize
        sizes = {f"{part}.bin": meta[part]["sequences"] * width for part in PARTS}
        own = digest({k: v for k, v in meta.items() if k != "meta_hash"}, 64)
        if meta.get("meta_hash", own if "dtype" not in meta else None) != own:  # the first ones had neither
            raise SettingsError(f"{directory / 'meta.json'}: differs from its own SHA-256; {remedy}")
        for name, size in sizes.items():
            if (found := (directory / name).stat().st_size) != size:
                raise SettingsError(f"{directory / name}: {found} bytes, recorded were {size}; {remedy}")
        for name in hashes:
            if file_sha256(directory / name) != hashes[name]:
                raise SettingsError(f"{directory / name}: differs from the recorded SHA-256; {remedy}")
    except SettingsError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
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
