"""From the texts of a corpus to memory-mapped token files: the tokenizer, the sequences, the files.

:func:`prepare` does everything and answers with :class:`TokenData`. Token files are little-endian integers of shape
(N, T), N sequences of T = ``context`` tokens, in a directory named by a hash of everything that made them; of 16 bits
where the vocabulary fits them, else of 32. ``datasets`` is imported where they are made: training only opens them, also
where it is not installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nfcore import __version__
from nfcore.corpus import HUB_REMEDY, Corpus, codeparrot_corpus, counts, local_corpus, overlap, texts_of
from nfcore.settings import DataSettings, SettingsError, check_mapping, digest, identity, project_root
from nfcore.store import file_sha256, make_once, refusing, sha256


if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1  # of the token files; part of the cache key, so raise it whenever the same settings give other bytes
PARTS = ("train", "validation")
END_OF_TEXT = "<|endoftext|>"
CODEPARROT_TOKENIZER = "huggingface-course/code-search-net-tokenizer"
BATCH_BYTES = 2**20  # of text tokenised at once: an encoding takes a hundred times the memory of its tokens


def token_type(vocab_size: int) -> str:
    """The dtype of the token files: numbers 0..65535 fit 16 bits."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def load_tokenizer(name: str, vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """A tokenizer from a ``tokenizer.json``, a directory or the Hub, whose vocabulary must be ``vocab_size``, and its
    special tokens by their roles, such as ``eos_token``, which are in other files of the directory."""
    from transformers import AutoTokenizer

    path = os.path.expanduser(name)
    file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    folder = os.path.dirname(os.path.abspath(file)) if os.path.basename(file) == "tokenizer.json" else path
    remedy = "give a tokenizer.json or its folder" if os.path.exists(path) else HUB_REMEDY
    with refusing(f"data.tokenizer: {name} cannot be loaded", remedy):
        found: Any = Tokenizer.from_file(file) if os.path.isfile(file) else None
        whole = None if os.path.isfile(folder) else AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer = found or getattr(whole, "backend_tokenizer", whole)
    if not isinstance(tokenizer, Tokenizer):
        raise SettingsError(f"data.tokenizer: {name} is a {type(tokenizer).__name__}, which has no tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size, last = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values(), default=0)
    if size != vocab_size or last >= vocab_size:
        differs = f"differs from the {size} tokens of data.tokenizer {name}, which are numbered up to {last}"
        raise SettingsError(f"data.vocab_size: {vocab_size} {differs}")
    roles = getattr(whole, "special_tokens_map", {})
    return tokenizer, {role: token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` tokens with :data:`END_OF_TEXT` as number 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()  # every byte has a token, seen in training or not
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise SettingsError(f"data.vocab_size: the training part reaches {size} of {vocab_size} tokens, being small")
    return tokenizer


def write_part(path: Path, texts: Dataset, tokenizer: Tokenizer, settings: DataSettings) -> Counter[str]:
    """Tokenise ``texts`` into the token file ``path``; returns what there is to count.

    A document is cut to a multiple of ``context`` tokens. Packed documents are not cut, and an end-of-text token stands
    between them.
    """
    context, dtype = settings.context, np.dtype(token_type(settings.vocab_size))
    rows = max(1, min(1000, BATCH_BYTES * len(texts.data) // max(1, texts.data.nbytes)))  # of average length
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id", tokenizer.token_to_id(model.get("unk_token") or ""))
    end_of_text = tokenizer.token_to_id(END_OF_TEXT) if settings.packing == "packed" else None
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text: only we end documents
    count = Counter(documents=0, bytes=0, tokens=0, unknown=0)
    with open(path, "wb") as file:
        for batch in texts.iter(rows):
            count["bytes"] += sum(len(text.encode()) for text in batch["text"])
            for encoding in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False):
                ids = encoding.ids
                whole = ids[: len(ids) // context * context]
                kept = whole if end_of_text is None else [end_of_text][: count["documents"]] + ids
                file.write(np.array(kept, dtype).tobytes())
                count.update(documents=1, tokens=len(ids), unknown=ids.count(unknown))
    count["sequences"] = path.stat().st_size // (context * dtype.itemsize)
    os.truncate(path, count["sequences"] * context * dtype.itemsize)
    found = f"the {path.stem} part ({count['documents']} documents, {count['tokens']} tokens)"
    if 2 * count["unknown"] > count["tokens"] or count["bytes"] > 100 * count["tokens"]:
        raise SettingsError(f"data.tokenizer: {settings.tokenizer} does not know most of {found}; choose another")
    if not count["sequences"]:
        remedy = "change data.validation_fraction, data.context, data.packing or the corpus"
        raise SettingsError(f"data: {found} gives no sequence of {context} tokens; {remedy}")
    return count


def order_by_hash(path: Path, settings: DataSettings) -> None:
    """Reorder the sequences of a token file by their hash, so that any first few of them are a fair sample."""
    rows = np.memmap(path, dtype=token_type(settings.vocab_size), mode="r").reshape(-1, settings.context)  # (N, T)
    keys = np.fromiter((hashlib.sha256(row.tobytes()).digest() for row in rows), dtype="S32")  # (N,)
    with open(path.with_suffix(".ordered"), "wb") as file:
        file.writelines(rows[number].tobytes() for number in keys.argsort(kind="stable"))
    os.replace(path.with_suffix(".ordered"), path)


@dataclass(frozen=True)
class TokenData:
    """A directory of token files and its ``meta.json``.

    ``train`` and ``validation``: (N, T) token numbers of 16 or 32 bits, read-only and memory-mapped. The sequences of
    validation are in an order such that the first ones are a fair sample of all.
    """

    directory: Path
    meta: dict[str, Any]
    train: np.ndarray
    validation: np.ndarray

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name the tokens themselves, wherever and however they were made."""
        return digest([self.meta[part]["sha256"] for part in PARTS])


def cache_dir() -> Path:
    """Where token directories live: the environment's ``NFCORE_DATA``, else ``data/tokens`` of the project."""
    return Path(os.environ.get("NFCORE_DATA") or project_root() / "data" / "tokens")


def prepare(settings: DataSettings | dict[str, Any]) -> TokenData:
    """Token files for these settings, made unless the same corpus and tokenizer were tokenised before.

    If another process makes the same files, this one waits for them.

    Raises:
        SettingsError: a corpus or tokenizer that cannot be had, is empty, too small or of the wrong size or format;
            token files that cannot be written or differ from their recorded hashes.
    """
    if not isinstance(settings, DataSettings):
        settings = DataSettings(**check_mapping(settings, "data"))
    codeparrot = settings.corpus == "codeparrot"
    corpus = (codeparrot_corpus if codeparrot else local_corpus)(settings)
    name = settings.tokenizer or (CODEPARROT_TOKENIZER if codeparrot else None)
    found: tuple[Tokenizer | None, dict[str, str]] = load_tokenizer(name, settings.vocab_size) if name else (None, {})
    tokenizer, roles = found
    if tokenizer and settings.packing == "packed" and tokenizer.token_to_id(END_OF_TEXT) is None:
        raise SettingsError(f"data.packing: packed needs a tokenizer with {END_OF_TEXT}, which data.tokenizer lacks")
    hashed = sha256(tokenizer.to_str()) if tokenizer else None
    directory = cache_dir() / digest([FORMAT, identity(settings), corpus.identity, hashed], 16)
    if not directory.exists():
        remedy = "free space on that disk, or set NFCORE_DATA to another; the same command goes on"
        with refusing(f"{directory}: token files cannot be written", remedy, OSError):
            make_once(directory, lambda place: make(place, corpus, tokenizer, settings))
    tokens = open_tokens(directory)
    tokens.meta["special_tokens"] = roles  # not in the file: it may have been made for the same tokenizer with others
    return tokens


def make(place: Path, corpus: Corpus, tokenizer: Tokenizer | None, settings: DataSettings) -> None:
    """Make token files and their record in ``place``.

    The Arrow file of the texts lies there meanwhile. If this is killed, a finished one is found again.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    texts = corpus.load(place / "arrow")
    if left_out := counts(corpus.facts["skipped"]):
        print(f"data.corpus: left out of {settings.corpus}: {left_out}", file=sys.stderr)
    tokenizer = tokenizer or train_tokenizer(texts_of(texts["train"]), settings.vocab_size)
    (place / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    parts = {part: write_part(place / f"{part}.bin", texts[part], tokenizer, settings) for part in PARTS}
    order_by_hash(place / "validation.bin", settings)
    versions = {name: importlib.metadata.version(name) for name in ("datasets", "numpy", "tokenizers")}
    versions |= {"python": platform.python_version(), "nfcore": __version__}
    meta = {"format": FORMAT, "dtype": token_type(settings.vocab_size), "settings": settings.to_dict()}
    meta |= {"corpus_hash": corpus.identity, "tokenizer_hash": file_sha256(place / "tokenizer.json")}
    meta |= {part: {**parts[part], "sha256": file_sha256(place / f"{part}.bin")} for part in PARTS}
    meta |= {"validation_overlap": overlap(texts_of(texts["train"]), texts_of(texts["validation"]))}
    meta |= {**corpus.facts, "versions": versions}
    (place / "meta.json").write_text(json.dumps({**meta, "meta_hash": digest(meta, 64)}, indent=1) + "\n")
    shutil.rmtree(place / "arrow")


def open_tokens(directory: Path) -> TokenData:
    """The token files in ``directory``, each checked against the hash in ``meta.json``, and that against its own.

    Hashing runs at the speed of a disk or faster, and training reads all of it anyway.
    """
    remedy = "delete the directory to make it again"
    with refusing(f"{directory}: incomplete or unreadable token files", remedy):
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        hashes = {"meta.json": meta.pop("meta_hash"), "tokenizer.json": meta["tokenizer_hash"]}
        hashes |= {f"{part}.bin": meta[part]["sha256"] for part in PARTS}
        for name, recorded in hashes.items():
            if recorded != (digest(meta, 64) if name == "meta.json" else file_sha256(directory / name)):
                raise SettingsError(f"{directory / name}: differs from the recorded SHA-256; {remedy}")
        context, how = meta["settings"]["context"], {"dtype": meta["dtype"], "mode": "r"}
        arrays = [np.memmap(directory / f"{part}.bin", **how).reshape(-1, context) for part in PARTS]
    return TokenData(directory, meta, *arrays)
