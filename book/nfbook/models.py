"""Trained models for others: one zip file a run, with a model card, the licence and the run's settings.

The unpacked folder is one that ``from_pretrained`` reads. The same run gives the same bytes. ``SHA256SUMS`` in the
output folder has the checksums of its zip files, for ``sha256sum --check``.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from nfbook.presets import FAMILIES
from nfcore import runs
from nfcore.settings import SettingsError, project_root
from nfcore.store import file_sha256, verify, write_atomically


SUMS = "SHA256SUMS"
CARD = """\
# {title}

{shape} with {parameters:,} parameters, trained from scratch on {tokens:,} tokens. It is one of the small models with
which *ReLU's Revival, revisited* re-runs a paper on language models without LayerNorm. `SM` is softmax attention, `LN`
LayerNorm in the blocks, `G` GELU, `R` ReLU; this model is `{configuration}`.

## Use

```python
import nfcore.model  # `pip install .` in a checkout of the companion; it registers the architecture
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (auto.from_pretrained("{folder}") for auto in (AutoModelForCausalLM, AutoTokenizer))
text = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**text, max_new_tokens=40)[0]))
```

## Result

| held-out text of the same corpus | value |
|---|---|
| perplexity a token | {perplexity:.4g} |
| loss, nats a token | {eval_loss:.4f} |
| loss of the median token, and at the 95th percentile | {eval_loss_median:.4f}, {eval_loss_p95:.4f} |
| loss of a model that knows token frequencies alone | {unigram_loss:.4f} |

Measured after the last update, on the first {eval_sequences} validation sequences of {context} tokens. {overlap}

## Limits

- The model is for the study of attention and activations. It is far too small and too briefly trained to write code.
- Perplexity is per token of its own tokenizer, and says nothing next to a model that has another one.
- It has seen one corpus, `{corpus}`, and no text that is not in it. It was not tuned, aligned or filtered.
- It is one seed ({seed}). A difference between two such models is evidence only over several seeds.

## Training

`python -m nfcore train settings.yaml` trains it again, with the file in this folder. Made on {device}, with
nfcore at commit `{commit}`, Python {python}, torch {torch} and transformers {transformers}; run `{id}`, token files
`{data_hash}`.

{settings}

## Licence and citation

Weights and code: MIT, in `LICENSE`. The training text belongs to its authors and is not in this folder. Cite the
companion and the paper that it re-runs:

{citation}

## Files

| file | SHA-256 |
|---|---|
{files}
"""


def finished(run: str) -> bool:
    """Whether this machine has a trained model of the run."""
    record = runs.read_record(runs.runs_dir() / run)
    return record is not None and record["status"] == "complete"


def pack(ids: Iterable[str], out: Path) -> list[Path]:
    """Pack the models of finished runs of this machine; returns the zip files. All are checked before one is written.

    Raises:
        SettingsError: a run without a model, or files that do not match their recorded hashes.
    """
    found = []
    for run in ids:
        directory = runs.runs_dir() / run
        record = runs.read_record(directory)
        if record is None or record["status"] != "complete":
            raise SettingsError(
                f"{directory}: no trained model here; `python -m nfcore runs list` shows which runs have one"
            )
        verify(directory, record)
        found.append((directory, record))
    if not found:
        raise SettingsError(f"{runs.runs_dir()}: no trained model of these runs")
    out.mkdir(parents=True, exist_ok=True)
    packed = []
    for directory, record in found:
        name = folder_name(record)
        files = {path.name: path.read_bytes() for path in (directory / "model").iterdir()}
        files["settings.yaml"] = (directory / "settings.yaml").read_bytes()
        files["LICENSE"] = (project_root() / "LICENSE").read_bytes()
        files["README.md"] = card(record).encode()
        packed.append(out / f"{name}.zip")
        packed[-1].write_bytes(zipped((f"{name}/{file}", data) for file, data in sorted(files.items())))
    sums = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(out.glob("*.zip"))]
    write_atomically(out / SUMS, "".join(sums))
    return packed


def zipped(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip file of these names and contents, the same bytes each time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files:
            entry = zipfile.ZipInfo(name)  # has the first date of zip files
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    return packed.getvalue()


def folder_name(record: dict[str, Any]) -> str:
    """As ``gpt2-SM+G-seed11-08150919a007``."""
    configuration = re.sub(r"[^\w+.]+", "-", runs.row(record)["configuration"]).strip("-")
    return f"{record['settings']['model']['family']}-{configuration}-seed{record['settings']['seed']}-{record['id']}"


def card(record: dict[str, Any]) -> str:
    """The model card of a finished run: a README with the metadata that the Hugging Face Hub reads."""
    settings, final, made = record["settings"], record["final"], record["provenance"]
    model, data, training = settings["model"], settings["data"], settings["training"]
    name, configuration = folder_name(record), runs.row(record)["configuration"]
    dataset = {"name": data["corpus"], "type": data["corpus"]}
    metrics = [{"type": "perplexity", "value": final["perplexity"]}, {"type": "loss", "value": final["eval_loss"]}]
    front = {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nfcore", "code", "normalisation-free", configuration],
        "model-index": [
            {
                "name": name,
                "results": [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}],
            }
        ],
    }
    overlap = made["validation_overlap"]
    said = f"{100 * overlap:.1f} % of the distinct validation lines also occur in the training text." if overlap else ""
    family, layers, width = FAMILIES[model["family"]], model["num_hidden_layers"], model["hidden_size"]
    rows = ["| setting | value |", "|---|---|"]
    rows += [f"| `{s}.{k}` | `{v}` |" for s in ("model", "data", "training") for k, v in settings[s].items()]
    text = CARD.format(
        **{**made, **final, "id": record["id"]},
        title=f"{family} {configuration}, seed {settings['seed']}",
        shape=f"A model of {family}'s shape, {layers} layers of width {width},",
        configuration=configuration,
        folder=name,
        eval_sequences=training["eval_sequences"],
        context=data["context"],
        corpus=data["corpus"],
        overlap=said,
        seed=settings["seed"],
        settings="\n".join(rows),
        citation=citation(),
        files="\n".join(
            f"| `{Path(f).name}` | `{sha}` |" for f, sha in record["files"].items() if f.startswith("model/")
        ),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{text}"


def citation() -> str:
    """The companion and the paper in one line each, from CITATION.cff."""
    own = yaml.safe_load((project_root() / "CITATION.cff").read_text())
    (paper,) = own["references"]
    names = " and ".join(f"{a['given-names']} {a['family-names']}" for a in paper["authors"])
    return (
        f"- {own['authors'][0]['name']}: *{own['title']}*, version {own['version']}, {own['date-released'].year}.\n"
        f"- {names}: *{paper['title']}*, {paper['year']}, {paper['url']}."
    )
