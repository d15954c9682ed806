"""``python -m tools.benchmarks.private``: count what private inference sends, and write it down.

What the results already hold is not measured again; delete a file to start it anew. Bytes and messages do not depend on
how busy the machine is. Seconds do, and are only recorded with ``--timing``, for an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tools.benchmarks.private import costs, models
from tools.benchmarks.private.engine import PROTOCOLS, EngineError, Parties, Settings
from tools.benchmarks.private.operations import OPERATIONS, inputs


ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "_build" / "private" / "results"
TEXT = ROOT / "nfcore" / "entropy.py"  # Python that no model was trained on
SECTIONS = ("operations", "models", "costs")
CONTEXT = 128
WARM = (32, 64)  # of the ReLU that opens a session
REPEATS = 3  # of a timed operation

Shape = tuple[int, ...]

# By protocol and kind. CHEETAH is slower by far, and stops at smaller sizes.
MEASURED: dict[str, dict[str, list[Shape]]] = {
    "SEMI2K": {
        "activation": [(32, 64), (128, 64), (128, 256), (128, 768), (128, 3072)],
        "norm": [(32, 64), (128, 64), (128, 256), (128, 768)],
        "softmax": [(4, 32, 32), (1, 128, 128), (4, 128, 128), (12, 128, 128), (4, 256, 256)],
        "other": [(4, 32, 32), (4, 128, 128), (12, 128, 128)],
        "product": [
            (4, 128, 16, 128),
            (128, 64, 64),
            (128, 64, 256),
            (128, 64, 1024),
            (128, 768, 768),
            (128, 768, 3072),
        ],
    },
    "CHEETAH": {
        "activation": [(32, 64), (128, 64), (128, 256), (128, 768)],
        "norm": [(32, 64), (128, 64), (128, 256), (128, 768)],
        "softmax": [(4, 32, 32), (1, 128, 128), (2, 128, 128), (4, 128, 128)],
        "other": [(4, 32, 32), (1, 128, 128), (4, 128, 128)],
        "product": [(128, 64, 64), (128, 64, 256), (4, 128, 16, 128), (128, 768, 768), (128, 768, 3072)],
    },
}


for shapes in MEASURED.values():
    shapes |= {"other form": shapes["activation"], "other softmax": shapes["softmax"]}


def planned(protocol: str, only: Sequence[str] = tuple(OPERATIONS), largest: float = np.inf) -> list[tuple[str, Shape]]:
    """Operations and shapes with at most ``largest`` numbers as input, the small ones first."""

    def numbers(pair: tuple[str, Shape]) -> int:
        return sum(x.size for x in inputs(*pair).values())

    found = [(name, shape) for name, o in OPERATIONS.items() for shape in MEASURED[protocol][o.kind] if name in only]
    return sorted((pair for pair in found if numbers(pair) <= largest), key=numbers)


class Results:
    """A JSON file of rows, written after each of them, with what made them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def add(self, row: dict[str, Any], *key: str) -> None:
        """Put a row in the place of the one with the same values of ``key``."""
        kept = [old for old in self.rows if any(old[name] != row[name] for name in key)]
        self.content = {"provenance": provenance(), "rows": [*kept, row]}
        self.write()

    def write(self) -> None:
        """One line a row, which is short and shows what changed."""
        parts = []
        for name, value in self.content.items():
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value) if isinstance(value, list) else ""
            parts.append(f"{json.dumps(name)}: " + (f"[\n{rows}\n ]" if rows else json.dumps(value)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text("{\n " + ",\n ".join(parts) + "\n}\n")
        os.replace(partial, self.path)


def provenance() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    settings = Settings()
    return {
        "commit": commit,
        **{name: version(name) for name in ("spu", "jax", "numpy")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "field": settings.field,
        "fraction_bits": settings.fraction_bits,
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def measure_operations(
    results: Results, protocol: str, wanted: list[tuple[str, Shape]], timing: bool, timeout: float
) -> int:
    """Measure what is missing of the wanted operations and shapes; how many failed."""
    key = ("protocol", "operation", "shape")
    have = {
        (row["operation"], tuple(row["shape"]))
        for row in results.rows
        if row["protocol"] == protocol and row["bytes"] is not None and (row["seconds"] is not None or not timing)
    }
    failed = 0
    parties: Parties | None = None
    for name, shape in wanted:
        if (name, shape) in have:
            continue
        row: dict[str, Any] = dict(protocol=protocol, operation=name, shape=list(shape))
        function, given = OPERATIONS[name].function, inputs(name, shape)
        try:
            if parties is None:
                parties = Parties(Settings(protocol, timeout=timeout))
                first = parties.run(OPERATIONS["relu"].function, inputs("relu", WARM))  # pays for the set-up
                setup: dict[str, Any] = dict(protocol=protocol, operation="set-up", shape=[*WARM], largest_error=None)
                results.add(setup | _counts([first], timing), *key)
            measured = [parties.run(function, given) for _ in range(REPEATS if timing else 1)]
            error = float(np.abs(measured[0].value - np.asarray(function(**given))).max())
            row |= _counts(measured, timing) | {"largest_error": float(f"{error:.3g}")}
        except EngineError as problem:  # both parties are gone; the next operation starts others
            print(f"{name} {shape}: {problem}", file=sys.stderr, flush=True)
            parties, failed = None, failed + 1
            row |= dict.fromkeys(("bytes", "messages", "seconds", "kernel_bytes", "largest_error")) | {
                "failure": str(problem)
            }
        results.add(row, *key)
        print(f"{protocol} {name} {'x'.join(map(str, shape))}: {row['bytes']} bytes", flush=True)
    if parties is not None:
        parties.close()
    return failed


def _counts(measured: list[Any], timing: bool) -> dict[str, Any]:
    last = measured[-1]
    seconds = float(f"{median(result.seconds for result in measured):.4g}") if timing else None
    return dict(bytes=last.bytes, messages=last.messages, seconds=seconds, kernel_bytes=last.kernel_bytes)


def measure_models(results: Results, runs: list[Path], text: Path, context: int, timing: bool, timeout: float) -> None:
    """Whole models under SEMI2K, from tokens to logits: those of finished runs, else random ones of two sizes."""
    given: list[tuple[str, int, models.Model, np.ndarray, dict[str, Any]]] = []
    for run in runs:
        from tokenizers import Tokenizer

        model, record, tokenizer = models.read(run)
        ids = Tokenizer.from_file(str(tokenizer)).encode(text.read_text()).ids
        if len(ids) < context:
            raise ValueError(f"--text: {text} has {len(ids)} tokens, fewer than {context}")
        about = {"run": record["id"], "perplexity": record["final"]["perplexity"]}
        given.append((_shape_of(model), context, model, np.array(ids[:context]), about))
    for shape, length in [] if runs else [("gpt2-2x32", 32), ("gpt2-6x64", context)]:
        for configuration in models.CONFIGURATIONS:
            model = models.random(shape, configuration, length)
            tokens = np.random.default_rng(1).integers(model.settings["vocab_size"], size=length)
            given.append((shape, length, model, tokens, {"run": None, "perplexity": None}))
    key = ("model", "context", "configuration", "run")
    have = {tuple(row[name] for name in key) for row in results.rows if row["seconds"] is not None or not timing}
    with Parties(Settings("SEMI2K", timeout=timeout)) as parties:
        for shape, length, model, tokens, about in given:
            label = {"model": shape, "context": length, "configuration": _label(model.settings), **about}
            if tuple(label[name] for name in key) in have:
                continue
            arrays = model.inputs(tokens)
            plain = np.asarray(model.program(**arrays))
            result = parties.run(model.program, arrays)
            difference = np.abs(result.value - plain)
            row = {
                "protocol": "SEMI2K",
                **label,
                **_counts([result], timing),
                "input_bytes": 8 * arrays["tokens"].size,  # the share of the tokens that the client sends first
                "largest_logit": float(f"{np.abs(plain).max():.4g}"),
                "largest_error": float(f"{difference.max():.3g}"),
                "median_error": float(f"{np.median(difference):.3g}"),
                "same_next_token": int((result.value.argmax(-1) == plain.argmax(-1)).sum()),
                "kinds": result.kinds,
            }
            results.add(row, *key)
            print(f"{shape} T={length} {row['configuration']}: {row['bytes']} bytes", flush=True)


def _shape_of(model: models.Model) -> str:
    """The name of a size, made of what sets the cost."""
    settings = model.settings
    for name, shape in models.SHAPES.items():
        if all(settings[key] == value for key, value in shape.items()):
            return name
    return f"{settings['family']}-{settings['num_hidden_layers']}x{settings['hidden_size']}"


def _label(settings: dict[str, Any]) -> str:
    for name, changes in costs.COMPARED.items():
        if all(settings.get(key) == value for key, value in changes.items()):
            return name
    return f"{settings['norm']}, {settings['activation']}"


def write_costs(folder: Path) -> None:
    rows = Results(folder / "operations.json").rows
    result = Results(folder / "costs.json")
    result.content = {"laws": costs.laws(rows), "rows": costs.sums(rows)}
    result.write()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.private", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--protocol", choices=PROTOCOLS, action="append", help="of the operations (default: both)")
    parser.add_argument("--only", choices=OPERATIONS, action="append", metavar="OPERATION", help="this operation")
    parser.add_argument(
        "--largest", type=float, default=np.inf, help="operations with at most so many numbers as input"
    )
    parser.add_argument("--run", type=Path, action="append", default=[], help="a folder of a finished run, for models")
    parser.add_argument("--text", type=Path, default=TEXT, help="what the models of --run read (default: %(default)s)")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens a model reads (default %(default)s)")
    parser.add_argument("--timing", action="store_true", help="record seconds too: only on an idle machine")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds for one operation (default 1200)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go (default: %(default)s)")
    args = parser.parse_args(arguments)
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"SECTION: {name!r} is not one of {', '.join(SECTIONS)}")
    sections = args.sections or SECTIONS
    failed = 0
    try:
        if "operations" in sections:
            results = Results(args.results / "operations.json")
            for protocol in args.protocol or PROTOCOLS:
                wanted = planned(protocol, args.only or tuple(OPERATIONS), args.largest)
                failed += measure_operations(results, protocol, wanted, args.timing, args.timeout)
        if "models" in sections:
            results = Results(args.results / "models.json")
            measure_models(results, args.run, args.text, args.context, args.timing, args.timeout)
        if "costs" in sections:
            write_costs(args.results)
    except (ValueError, OSError, EngineError) as error:
        sys.exit(f"tools.benchmarks.private: {error}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
