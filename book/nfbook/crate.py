"""The RO-Crate of a recorded set: what its files are, and which settings, software and device made them.

A crate is the folder ``data/recorded/<name>`` with a file ``ro-crate-metadata.json``. It follows RO-Crate 1.1 and the
profile Process Run Crate 0.5. Everything in it comes from the files of the folder, so the same folder gives the same
bytes. Runs with the same commit, versions and device are one action.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nfbook.study import STUDIES, Study
from nfcore import runs, store
from nfcore.settings import SettingsError
from nfcore.store import file_sha256, write_atomically


FILE = "ro-crate-metadata.json"
AUTHORS = "the nfcore authors"
LICENCE = "https://spdx.org/licenses/MIT"
PAPER = "https://doi.org/10.48550/arXiv.2410.09637"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy", "spu", "jax")
ENVIRONMENT = ("commit", "python", "system", "device", "cores", *PACKAGES)
FORMATS = {".json": "application/json", ".parquet": "application/vnd.apache.parquet", ".csv": "text/csv"}
CONTENTS = {
    "records.json": "Settings, final results, provenance and file hashes of each run",
    "metrics.parquet": "Losses, learning rate and gradient norm over training",
    "layers.parquet": "Statistics of each layer at the probes",
    "heads.parquet": "Attention entropy of each head at the probes, in nats",
    "positions.parquet": "Attention entropy of each layer by query position at the last probe, in nats",
    "verdicts.csv": "The verdict on each claim, as `python -m nfbook claims` takes it from the runs",
    "verdicts-2026-11-24.csv": "The verdicts on the paper's claims by the first rule, which is not in use any more",
    "checksums.json": "SHA-256 of the tables and of records.json",
    "operations.json": "Bytes, messages and errors of each non-linear operation between two processes",
    "models.json": "Bytes, messages and errors of whole models between two processes",
    "costs.json": "Laws of the cost fitted to operations.json, and their sums for whole models",
}


def write(folder: Path) -> Path:
    """Write the crate of a recorded set."""
    write_atomically(folder / FILE, text(folder))
    return folder


def text(folder: Path) -> str:
    """The crate's JSON."""
    return json.dumps({"@context": CONTEXT, "@graph": graph(folder)}, indent=1, ensure_ascii=False) + "\n"


def verify(folder: Path) -> int:
    """Compare the files of a recorded set with the crate beside them; returns how many there are.

    Raises:
        SettingsError: a file is missing or differs, or there is no readable crate.
    """
    remedy = "take the folder from the archive again, or `python -m nfbook record` its runs"
    try:
        found = json.loads((folder / FILE).read_text())["@graph"]
        sums = {entity["@id"]: entity["sha256"] for entity in found if entity["@type"] == "File"}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(f"{folder / FILE}: cannot be read ({type(error).__name__}); {remedy}") from None
    store.verify(folder, {"files": sums}, remedy)
    return len(sums)


def graph(folder: Path) -> list[dict[str, Any]]:
    """The entities of the crate: itself, its files, one action for each environment, and what those refer to."""
    files = [_file(folder / name) for name in sorted(CONTENTS) if (folder / name).exists()]
    entities = _actions(folder, files)
    actions = [entity for entity in entities if entity["@type"] == "CreateAction"]
    root = {
        "@id": "./",
        "@type": "Dataset",
        "conformsTo": {"@id": PROFILE},
        "name": f"nfcore, recorded set {folder.name}",
        "description": "Records of experiments on normalisation-free language models, which re-run and judge the paper "
        "that is cited. The trained models are not part of it.",
        "datePublished": max(action["endTime"] for action in actions),
        "license": {"@id": LICENCE},
        "author": {"@id": "#authors"},
        "publisher": {"@id": "#authors"},
        "citation": {"@id": PAPER},
        "hasPart": _refer(files),
        "mentions": _refer(actions),
    }
    descriptor = {
        "@id": FILE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    context = [
        {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": LICENCE, "@type": "CreativeWork", "name": "MIT License"},
        {"@id": "#authors", "@type": "Organization", "name": AUTHORS},
        {"@id": PAPER, "@type": "ScholarlyArticle", "name": "ReLU's Revival", "author": "N. K. Jha and B. Reagen"},
    ]
    return [descriptor, root, *context, *files, *entities]


def command(name: str) -> str:
    """What makes a recorded set anew."""
    if name in STUDIES:
        return " && ".join(f"python -m nfbook study {name}/{stage}" for stage in Study.load(name).stages)
    return {
        "private": 'make private PRIVATE="--results data/recorded/private"',
        "gpu": "python -m tools.gpu train --out FOLDER && python -m tools.gpu collect FOLDER",
    }.get(name, f"python -m nfbook build {name} && python -m nfbook record {name}")


def _file(path: Path) -> dict[str, Any]:
    return {
        "@id": path.name,
        "@type": "File",
        "name": path.name,
        "description": CONTENTS[path.name],
        "encodingFormat": FORMATS[path.suffix],
        "contentSize": str(path.stat().st_size),
        "sha256": file_sha256(path),
    }


def _actions(folder: Path, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One CreateAction for each environment, with its settings, software and resources."""
    records = runs.read_records(folder)
    unit = "runs"
    if not records:  # measurements, whose files have the provenance themselves
        read = (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.name != FILE)
        records, unit = [{"provenance": found["provenance"]} for found in read if "provenance" in found], "files"
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        made = record["provenance"]
        groups.setdefault(json.dumps([made.get(key) for key in ENVIRONMENT]), []).append(record)
    varied = {name for name, values in _values(records).items() if len(values) > 1}
    entities: dict[str, dict[str, Any]] = {}

    def add(found: Iterable[dict[str, Any]]) -> Any:
        found = list(found)
        entities.update({entity["@id"]: entity for entity in found})
        return _refer(found)

    for number, group in enumerate(groups.values(), 1):
        action, made = f"#action-{number}", group[0]["provenance"]
        settings = (
            _property(f"{action if name in varied else '#set'}/{name}", name, values[0] if len(values) == 1 else values)
            for name, values in _values(group).items()
            if values
        )
        commits = (made["commit"] or "unknown").split()  # several of a run that went on with newer code
        add(
            [
                {
                    "@id": action,
                    "@type": "CreateAction",
                    "name": f"{len(group)} {unit} at commit {' and '.join(commit[:10] for commit in commits)}",
                    "description": command(folder.name),
                    "agent": {"@id": "#authors"},
                    "instrument": add(_nfcore(commits, made, add(_software(made)))),
                    "object": add(settings),
                    "result": _refer(files),
                    "resourceUsage": add(_resources(action, group)),
                    "endTime": max(_ended(record) for record in group).replace("Z", "+00:00"),
                    "actionStatus": "http://schema.org/CompletedActionStatus",
                }
            ]
        )
    return list(entities.values())


def _nfcore(commits: list[str], made: dict[str, Any], requirements: Any) -> list[dict[str, Any]]:
    """Ours, once for each commit."""
    return [
        {
            "@id": f"#nfcore-{commit}",
            "@type": "SoftwareApplication",
            "name": "nfcore",
            "softwareVersion": f"commit {commit}",
            "softwareRequirements": requirements,
            "operatingSystem": made["system"],
        }
        for commit in commits
    ]


def _resources(action: str, group: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The device and, of runs, their seconds."""
    made = group[0]["provenance"]
    yield _property(f"{action}/device", "device", made.get("device") or f"{made['system']}, {made['cores']} cores")
    if "wall_seconds" in made:
        seconds = round(sum(record["provenance"]["wall_seconds"] for record in group), 2)
        yield _property(f"{action}/seconds", "seconds of the runs, added", seconds)


def _ended(record: dict[str, Any]) -> str:
    made: dict[str, str] = record["provenance"]
    return made.get("finished") or made["measured"]


def _values(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The different values of each setting, without those that are not set."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for section, values in record.get("settings", {}).items():
            flat = (
                {f"{section}.{key}": v for key, v in values.items()} if isinstance(values, dict) else {section: values}
            )
            for name, value in flat.items():
                if name != "name" and value is not None:  # a label
                    found.setdefault(name, {})[json.dumps(value)] = value
    return {name: list(values.values()) for name, values in found.items()}


def _property(identifier: str, name: str, value: Any) -> dict[str, Any]:
    return {"@id": identifier, "@type": "PropertyValue", "name": name, "value": value}


def _software(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    versions = {name: made[name] for name in ("python", *PACKAGES) if made.get(name)}
    for name, version in versions.items():
        public = version.partition("+")[0]  # a local label, as that of torch's CPU build, is not in the address
        pypi = f"https://pypi.org/project/{name}/{public}/"
        url = (
            pypi if name != "python" else f"https://www.python.org/downloads/release/python-{public.replace('.', '')}/"
        )
        yield {"@id": url, "@type": "SoftwareApplication", "name": name, "softwareVersion": version, "url": url}


def _refer(entities: Iterable[dict[str, Any]]) -> Any:
    """References to entities; one is no list, as the specification recommends."""
    references = [{"@id": entity["@id"]} for entity in entities]
    return references[0] if len(references) == 1 else references
