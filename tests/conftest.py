"""What all tests share: no network, no progress bars, the same random numbers whatever the order of the tests."""

import json
import os
from pathlib import Path
from typing import Any

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

PUBLISHED = Path(__file__).resolve().parent.parent / "data" / "published"


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def published() -> dict[str, Any]:
    """The paper's numbers, by file name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in PUBLISHED.glob("*.json")}
