"""Text to token files: ``nfcore.tokens.prepare`` against ``datasets.map``, and its memory by the size of the corpus.

Both sides read the same JSON lines, one of them a document, with the same tokenizer and two threads of the tokenizer's
own, cut the documents into sequences of T tokens and write them to a disk. ``cold`` starts from nothing; ``cached``
finds the files of an earlier call. Each call is a process of its own, from after its imports to files closed. The
tokenizer alone, on texts that are in memory, is what neither side can do without.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from nfcore.corpus import documents
from nfcore.formats import ROWS
from nfcore.settings import DataSettings
from nfcore.tokens import prepare, train_tokenizer
from tools.benchmarks.common import Options, Section, Target, alternate, in_a_process, ratio, spread


CONTEXT, VOCABULARY = 128, 1024
SIZE = 32  # MB of text for the comparison
GROWTH = (64, 256, 1024)  # MB of text for memory and time
MIB = 2**20


def corpus(path: Path, megabytes: float, options: Options) -> None:
    """JSON lines of the Python files of ``options.corpus``. They are repeated where they do not suffice, each round
    with another first line, so that no two documents are equal."""
    texts = [document.text for document in documents(DataSettings(corpus=options.corpus), Counter())]
    random.Random(0).shuffle(texts)  # any part of it has documents of all sizes
    written = number = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            text = f"# {number // len(texts)}\n{texts[number % len(texts)]}"
            file.write(json.dumps({"content": text}) + "\n")
            written += len(text.encode())
            number += 1


def tokenizer(path: Path, options: Options) -> None:
    texts = (document.text for document in documents(DataSettings(corpus=options.corpus), Counter()))
    train_tokenizer(texts, VOCABULARY).save(str(path))


def ours(source: Path, tokens: Path, cache: Path) -> dict[str, float]:
    import datasets  # noqa: F401, before the clock starts

    os.environ["NFCORE_DATA"] = str(cache)
    settings = DataSettings(
        corpus=str(source), tokenizer=str(tokens), vocab_size=VOCABULARY, context=CONTEXT, split_by="document"
    )
    prepare_tokenizer(tokens)
    start = time.perf_counter()
    found = prepare(settings)
    passed = time.perf_counter() - start
    parts = [found.meta[part] for part in ("train", "validation")]
    return {"seconds": passed, **{key: sum(part[key] for part in parts) for key in ("documents", "tokens", "bytes")}}


def datasets_map(source: Path, tokens: Path, cache: Path) -> dict[str, float]:
    """As Hugging Face's own language-model example does it: tokenise, then group, each a batched map with a cache."""
    import datasets

    datasets.disable_progress_bars()
    fast = prepare_tokenizer(tokens)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": fast(batch["content"], return_attention_mask=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        rows = (ids[i : i + CONTEXT] for ids in batch["input_ids"] for i in range(0, len(ids), CONTEXT))
        return {"input_ids": [row for row in rows if len(row) == CONTEXT]}

    start = time.perf_counter()
    texts = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(cache))
    encoded = texts.map(encode, batched=True, remove_columns=texts.column_names)
    grouped = encoded.map(group, batched=True)
    passed = time.perf_counter() - start
    assert len(grouped)
    return {"seconds": passed, "documents": len(texts)}


def tokenizer_alone(source: Path, tokens: Path, cache: Path) -> dict[str, float]:
    fast = prepare_tokenizer(tokens).backend_tokenizer
    with open(source, encoding="utf-8") as file:
        texts = [json.loads(line)["content"] for line in file]
    start = time.perf_counter()
    for first in range(0, len(texts), ROWS):
        fast.encode_batch_fast(texts[first : first + ROWS], add_special_tokens=False)
    return {"seconds": time.perf_counter() - start, "documents": len(texts)}


def prepare_tokenizer(file: Path) -> Any:
    """Load it once, so that what a library imports at its first use is not in anybody's time."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(file))


SIDES = {"ours": ours, "datasets.map": datasets_map}


def run(options: Options) -> Section:
    section = Section()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = folder / "tokenizer.json"
        tokenizer(tokens, options)
        compare(section, options, folder, tokens)
        memory(section, options, folder, tokens)
    return section


def compare(section: Section, options: Options, folder: Path, tokens: Path) -> None:
    source = folder / "corpus.jsonl"
    corpus(source, 0.5 if options.small else SIZE, options)
    last: dict[str, Any] = {}
    alone = {"tokenizer alone": tokenizer_alone}
    caches = dict.fromkeys({**SIDES, **alone}, folder / "nowhere")

    def cold(name: str) -> float:
        caches[name] = Path(tempfile.mkdtemp(dir=folder))
        last[name], _ = in_a_process({**SIDES, **alone}[name], source, tokens, caches[name])
        return float(last[name]["seconds"])

    def cached(name: str) -> float:
        return float(in_a_process(SIDES[name], source, tokens, caches[name])[0]["seconds"])

    for kind, measure in (("cold", cold), ("cached", cached)):
        names = [*SIDES, *(alone if kind == "cold" else ())]
        sides = {name: (lambda name=name, measure=measure: measure(name)) for name in names}
        samples = alternate(sides, options.repeats, options.warmup)
        for name in names:
            counts = {key: last["ours"][key] for key in ("documents", "tokens", "bytes")}
            section.rows.append(
                {
                    "kind": kind,
                    "side": name,
                    "seconds": spread(samples[name]),
                    "documents_per_second": spread([counts["documents"] / s for s in samples[name]]),
                    "tokens_per_second": spread([counts["tokens"] / s for s in samples[name]]),
                    "speedup": ratio(samples, "datasets.map", name),
                    **counts,
                }
            )
        times = ratio(samples, "datasets.map", "ours")["median"]
        # Measured without a target: preparing is datasets.map with a second reading of the corpus, which finds changes.
        section.targets.append(Target(f"text to tokens over datasets.map, {kind}", times, None, "x"))


def memory(section: Section, options: Options, folder: Path, tokens: Path) -> None:
    sizes = (1, 2) if options.small else GROWTH
    peaks = []
    for megabytes in sizes:
        source = folder / f"{megabytes}.jsonl"
        corpus(source, megabytes, options)
        counts, peak = in_a_process(ours, source, tokens, Path(tempfile.mkdtemp(dir=folder)))
        peaks.append(peak / MIB)
        section.rows.append({"kind": "memory", "megabytes": megabytes, "peak_mib": peak / MIB, **counts})
        source.unlink()
    # Bytes that each further byte of text costs: nothing would be flat.
    slope = (peaks[-1] - peaks[0]) * MIB / ((sizes[-1] - sizes[0]) * 1e6)
    section.targets.append(Target("peak memory of text to tokens, bytes a byte of text", slope, 0.1, "", False))
    rates = [row["seconds"] / row["megabytes"] for row in section.rows if row["kind"] == "memory"]
    growth = rates[-1] / rates[0]
    section.targets.append(
        Target("time a byte of the largest corpus over that of the smallest", growth, 1.1, "x", False)
    )
