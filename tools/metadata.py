"""Write what archives read: .zenodo.json and codemeta.json from CITATION.cff and pyproject.toml, and the RO-Crates of
the sets under data/recorded.

``python -m tools.metadata`` after a change of any of these; a test checks that the committed files are what it writes.
Zenodo and the readers of CodeMeta look for their file at the top of a repository and nowhere else.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from nfbook import crate


ROOT = Path(__file__).resolve().parent.parent


def zenodo(citation: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a deposit, in the form of Zenodo's GitHub integration."""
    return {
        "title": citation["title"],
        "upload_type": citation["type"],
        "description": citation["abstract"],
        "creators": [{"name": author["name"]} for author in citation["authors"]],
        "version": citation["version"],
        "publication_date": citation["date-released"].isoformat(),
        "access_right": "open",
        "license": citation["license"],
        "keywords": citation["keywords"],
        "language": "eng",
        "related_identifiers": [
            {"identifier": paper["doi"], "relation": "reviews", "resource_type": "publication-article"}
            for paper in citation["references"]
        ],
    }


def codemeta(citation: dict[str, Any], project: dict[str, Any]) -> dict[str, Any]:
    """The software in CodeMeta's vocabulary."""
    requirements = map(Requirement, project["dependencies"])
    return {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": project["name"],
        "description": project["description"],
        "version": citation["version"],
        "dateModified": citation["date-released"].isoformat(),
        "license": f"https://spdx.org/licenses/{project['license']}",
        "author": [{"@type": "Organization", "name": author["name"]} for author in citation["authors"]],
        "keywords": citation["keywords"],
        "programmingLanguage": "Python",
        "runtimePlatform": f"Python {project['requires-python']}",
        "operatingSystem": ["Linux", "macOS"],
        "softwareRequirements": [
            {"@type": "SoftwareApplication", "name": r.name, "version": str(r.specifier)} for r in requirements
        ],
        "referencePublication": [
            {
                "@type": "ScholarlyArticle",
                "@id": f"https://doi.org/{paper['doi']}",
                "name": paper["title"],
                "datePublished": str(paper["year"]),
            }
            for paper in citation["references"]
        ],
    }


def files() -> dict[Path, str]:
    """Every file that this module writes, with its text."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    made = {ROOT / ".zenodo.json": zenodo(citation), ROOT / "codemeta.json": codemeta(citation, project)}
    texts = {path: json.dumps(data, indent=2, ensure_ascii=False) + "\n" for path, data in made.items()}
    sets = sorted(folder for folder in (ROOT / "data" / "recorded").iterdir() if folder.is_dir())
    return texts | {folder / crate.FILE: crate.text(folder) for folder in sets}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
