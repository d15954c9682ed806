"""RO-Crates of recorded sets: whole, true to the files beside them, and the same each time."""

import re
from pathlib import Path
from typing import Any

import pytest

from nfbook import crate
from nfbook.__main__ import main
from nfbook.recorded import recorded_dir
from nfcore import runs
from nfcore.settings import project_root
from nfcore.store import file_sha256


SETS = sorted(path for path in (project_root() / "data" / "recorded").iterdir() if path.is_dir())


def references(value: Any) -> list[str]:
    """Every ``{"@id": ...}`` inside the properties of an entity."""
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if isinstance(value, dict):
        return [value["@id"]] if set(value) == {"@id"} else references(list(value.values()))
    return []


@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.name)
def test_crate_is_whole(folder: Path) -> None:
    """What RO-Crate 1.1 and Process Run Crate 0.5 require."""
    graph = crate.graph(folder)
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph), "an identifier is there twice"
    assert all(" " not in name for name in entities)
    named = {name for entity in graph for name in references(entity)}
    assert named - set(entities) == {"https://w3id.org/ro/crate/1.1"}, "referred to, and not described"
    root = entities["./"]
    assert entities[crate.FILE]["about"] == {"@id": "./"}
    assert {"name", "description", "datePublished", "license", "hasPart"} <= set(root)
    actions = [entity for entity in graph if entity["@type"] == "CreateAction"]
    assert references(root["mentions"]) == [action["@id"] for action in actions]
    for action in actions:
        assert references(action["result"]) == references(root["hasPart"])
        for tool in references(action["instrument"]):
            assert entities[tool]["@type"] == "SoftwareApplication"
    parts = {path.name for path in folder.iterdir()} - {crate.FILE}
    assert parts == set(references(root["hasPart"]))
    for name in parts:
        assert entities[name]["sha256"] == file_sha256(folder / name)
    assert not re.findall(r'"/|/(?:home|tmp|root|Users|work)/', crate.text(folder)), "a path of a machine"


def test_crate_has_what_the_runs_were_made_with() -> None:
    records = runs.read_records(recorded_dir("transient"))
    graph = crate.graph(recorded_dir("transient"))
    rates = {r["settings"]["training"]["learning_rate"] for r in records}
    found = [e["value"] for e in graph if e.get("name") == "training.learning_rate"]
    assert rates == {rate for value in found for rate in (value if isinstance(value, list) else [value])}
    said = {str(e.get("value")) for e in graph} | {e.get("softwareVersion", "").removeprefix("commit ") for e in graph}
    for key in ("commit", "device", "torch"):
        assert {r["provenance"][key] for r in records} <= said
    counts = [int(e["name"].split()[0]) for e in graph if e["@type"] == "CreateAction"]
    assert sum(counts) == len(records)


def test_recording_writes_a_crate_that_verifies(
    trained: Path, params_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nfbook import __main__ as command

    monkeypatch.setattr(command, "grid", lambda name: [type("Run", (), {"id": trained.name})])
    assert main(["record", "smoke"]) == 0
    folder = recorded_dir("smoke")
    assert capsys.readouterr().out == f"{folder}\n"
    first = (folder / crate.FILE).read_text()
    assert first == crate.text(folder)
    assert "python -m nfbook build smoke && python -m nfbook record smoke" in first
    assert main(["verify"]) == 0
    assert capsys.readouterr().out.endswith("smoke: 6 files match\n")
    (folder / "metrics.parquet").write_bytes(b"")
    assert crate.text(folder) != first
    assert main(["verify"]) == 2
    assert "metrics.parquet: does not match its recorded hash" in capsys.readouterr().err
    (folder / crate.FILE).write_text("{}")
    assert main(["verify"]) == 2
    assert f"{crate.FILE}: cannot be read (KeyError)" in capsys.readouterr().err
