"""Packed models: what is in a zip, that it loads, and what is refused."""

import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from nfbook import models
from nfbook.__main__ import main
from nfcore import runs


def test_packed_model_loads_and_its_card_has_the_record(trained: Path, tmp_path: Path) -> None:
    assert main(["models", trained.name, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.zip")
    subprocess.run(["sha256sum", "--check", "--quiet", models.SUMS], cwd=tmp_path, check=True)
    first = path.read_bytes()
    models.pack([trained.name], tmp_path)
    assert path.read_bytes() == first
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)

    folder = path.with_suffix("")
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    text = tokenizer("def ", return_tensors="pt")
    assert model.generate(**text, max_new_tokens=3, min_new_tokens=3).shape == (1, text.input_ids.shape[1] + 3)

    record = runs.read_record(trained)
    assert record is not None
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "perplexity", "value": record["final"]["perplexity"]}
    made = record["provenance"]
    weights = record["files"]["model/model.safetensors"]
    for said in (f"{made['tokens']:,} tokens", f"{made['parameters']:,} param", made["device"], weights, folder.name):
        assert said in card
    assert (folder / "settings.yaml").read_bytes() == (trained / "settings.yaml").read_bytes()


def test_a_run_without_a_model_is_refused(
    trained: Path, diverged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (diverged.name, "gone"):
        assert main(["models", trained.name, run, "--out", str(tmp_path / "out")]) == 2
        assert f"{run}: no trained model here" in capsys.readouterr().err
    assert main(["models", "study", "--out", str(tmp_path / "out")]) == 2
    assert "no trained model of these runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
