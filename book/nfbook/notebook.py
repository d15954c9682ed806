"""Notebooks: their parameters checked, their execution repeatable.

:func:`parameters` is the first call of every notebook in ``notebooks/``; :func:`execute` turns such a jupytext script
into an executed ipynb whose bytes depend on the script, the parameters and the results alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfbook.presets import Preset
from nfbook.study import STUDIES, Study
from nfcore.settings import SettingsError, check_keys


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# Imports make no garbage: looking for it among all that they bring, at the end too, takes a third of a short notebook.
START = "import atexit, gc; gc.set_threshold(100_000, 50, 50); atexit.register(gc.freeze)"


def parameters(namespace: Mapping[str, Any]) -> Any:
    """The :class:`~nfbook.presets.Preset` that a notebook's parameters name, with the parameters that are not None laid
    over it; for ``study`` and ``transient`` the :class:`~nfbook.study.Study`.

    Call it with ``globals()`` before anything else is assigned: every plain value there is taken for a parameter.

    Raises:
        SettingsError: unknown parameter, wrong type or value.
    """
    shell = ("In", "Out", "exit", "quit", "get_ipython", "open")
    if isinstance(namespace.get("preset"), Preset | Study):
        raise SettingsError("preset: this notebook has read its parameters already; restart the kernel to change them")
    return _preset(
        {
            name: value
            for name, value in namespace.items()
            if not (name.startswith("_") or name in shell or callable(value) or isinstance(value, types.ModuleType))
        }
    )


def _preset(values: dict[str, Any]) -> Preset | Study:
    if (study := values.get("preset")) in STUDIES:
        check_keys(values, ("preset", "source"), f"parameters of preset {study}")
        return Study.load(study, **{name: value for name, value in values.items() if name == "source"})
    check_keys(values, Preset.model_fields, "parameters")
    given = {name: value for name, value in values.items() if value is not None}
    return Preset.load(given.pop("preset", "quick"), **given)


def default_preset(script: Path) -> str | None:
    """The preset or study that the script's parameters name; None of a page that shows no runs and has none."""
    found = re.search(r'^preset = "(\w+)"', script.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def read(script: Path) -> Any:
    """A jupytext script as a notebook with cell ids made from its text, so that equal sources give equal files."""
    import jupytext

    if not script.is_file():
        raise SettingsError(f"{script}: no such notebook script")
    # Its header names a kernel, which is replaced below; jupytext refuses one that is incomplete.
    text = re.sub(r"\A# ---\n(?:#.*\n)*?# ---\n+", "", script.read_text(encoding="utf-8"))
    notebook = jupytext.reads(text, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = hashlib.sha256(f"{number} {cell.source}".encode()).hexdigest()[:8]
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook


def execute(script: Path, output: Path, values: dict[str, Any]) -> Path:
    """Run ``script`` by papermill with parameters ``values`` and write the executed notebook to ``output``.

    Parameters are checked before a kernel starts. ``output`` is only replaced by a notebook that ran to its end; one
    that failed is kept beside it as ``<name>.failed.ipynb``.

    Raises:
        SettingsError: wrong parameters.
        RuntimeError: a cell failed; names the cell and the error.
    """
    import nbformat
    import papermill

    if script.suffix != ".py" or output.suffix != ".ipynb":
        raise SettingsError(f"{script}, {output}: a script ends in .py, its notebook in .ipynb")
    notebook = read(script)
    if values or default_preset(script):
        _preset(values)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary, script.with_suffix(".ipynb").name), Path(temporary, "executed.ipynb")
        nbformat.write(notebook, source)
        try:
            executed = papermill.execute_notebook(
                source,
                target,
                values,
                progress_bar=False,
                record_timing=False,
                coalesce_streams=True,  # else what is printed slowly comes in pieces
                extra_arguments=["--IPKernelApp.log_level=50", f"--IPKernelApp.exec_lines={START}"],
            )
        except papermill.PapermillExecutionError as error:
            failed = output.with_suffix(".failed.ipynb")
            if target.exists():
                shutil.move(target, failed)  # perhaps to another file system
            raise RuntimeError(
                f"{script}: cell {error.cell_index}: {error.ename}: {error.evalue} (see {failed})"
            ) from None
        _clean(executed)
        partial = output.with_name(f".{output.name}.partial")
        nbformat.write(executed, partial)
    os.replace(partial, output)
    output.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return output


def _clean(notebook: Any) -> None:
    """Drop what differs between runs of the same notebook, and the cells of its parameters from the page."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    for number, (cell, tag) in enumerate(zip(notebook.cells, tags, strict=True)):
        keep = {"tags": [*tag, "remove-cell"] if {"parameters", "injected-parameters"} & {*tag} else tag}
        keep |= {k: v for k, v in cell.metadata.items() if k == "mystnb"}
        cell.metadata = {k: v for k, v in keep.items() if v}
        if "injected-parameters" in tag:
            cell["id"] = hashlib.sha256(f"injected {number} {cell.source}".encode()).hexdigest()[:8]
        for output in cell.get("outputs", []):
            output.pop("execution_count", None) if output.output_type != "execute_result" else None
