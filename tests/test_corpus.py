"""What a corpus holds, how it is split, and what is left out of it, on corpora of a few kilobytes; no network."""

import base64
import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nfcore import corpus, formats
from nfcore.corpus import documents, local_corpus, overlap, texts_of
from nfcore.settings import DataSettings, SettingsError


def source(name: str) -> str:
    return "".join(f"def {name}_{i}(argument):\n    return {name} + argument * {i}\n" for i in range(6))


def settings_for(path, **changes) -> DataSettings:
    return DataSettings(corpus=str(path), **{"validation_fraction": 0.3, **changes})


def read(path, **changes) -> tuple[list[str], Counter[str]]:
    skipped: Counter[str] = Counter()
    return [d.text for d in documents(settings_for(path, **changes), skipped)], skipped


def parts(settings: DataSettings, place: Path) -> dict[str, list[str]]:
    make = corpus.codeparrot_corpus if settings.corpus == "codeparrot" else local_corpus
    return {part: [*texts_of(texts)] for part, texts in make(settings).load(place).items()}


@pytest.mark.parametrize("split_by", ["group", "document"])
def test_split_has_no_leak_and_no_copies(folder, tmp_path, split_by):
    shutil.copy(folder / "group5" / "file0.py", folder / "group0" / "again.py")
    settings = settings_for(folder, split_by=split_by)
    found = parts(settings, tmp_path / "arrow")
    assert local_corpus(settings).facts == {"duplicates": 1, "skipped": {}}
    assert sorted(found["train"] + found["validation"]) == sorted({*read(folder)[0]})
    assert len(found["train"]) + len(found["validation"]) == 24
    assert min(map(len, found.values())) > 0
    if split_by == "group":
        group_of = {d.text: d.group for d in documents(settings, Counter())}
        assert not {group_of[t] for t in found["train"]} & {group_of[t] for t in found["validation"]}
    first = parts(settings_for(folder, split_by=split_by, max_documents=3), tmp_path / "arrow of three")
    assert first["train"] == found["train"][:3]


def test_identity_is_of_texts_and_groups_alone(folder, tmp_path):
    known = local_corpus(settings_for(folder)).identity
    copy = tmp_path / "copy"
    for path in sorted(folder.rglob("*.py"), reverse=True):
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    assert local_corpus(settings_for(copy)).identity == known
    texts = [[hashlib.sha256(d.text.encode()).hexdigest(), d.group] for d in documents(settings_for(copy), Counter())]
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest() == known
    (copy / "group0" / "file0.py").write_text("other")
    assert local_corpus(settings_for(copy)).identity != known
    assert local_corpus(settings_for(folder, max_documents=1)).identity == known


def test_what_a_folder_leaves_out_is_counted(folder, tmp_path, monkeypatch):
    (folder / "group0" / "zero.py").write_bytes(b"a\0b")
    (folder / "group0" / "sheet.XLSX").write_bytes(b"PK")
    (folder / "group0" / "few.jsonl").write_text('{"content": "text"}\n')
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (folder / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "up").symlink_to(folder, target_is_directory=True)
    (folder / "again").symlink_to(folder / "group1", target_is_directory=True)
    (folder / "dangling.txt").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "pool")
    (folder / "pool").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    locked, open_file = folder / "group1" / "locked.py", formats.open_file
    locked.write_text("locked")

    def refuse(path, *args, **options):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(path, *args, **options)

    monkeypatch.setattr(formats, "open_file", refuse)
    texts, skipped = read(folder)
    assert len(texts) == 24
    assert +skipped == Counter(
        {"binary": 1, ".xlsx file": 1, ".jsonl file": 1, "hidden directory": 1, "link outside": 2, "not a file": 1}
        | {"unreadable (No such file or directory)": 1, "unreadable (Too many levels of symbolic links)": 2}
        | {"unreadable (Permission denied)": 1}
    )


def test_a_folder_of_shards_is_read_as_records(tmp_path):
    texts = [source(f"r{i}") for i in range(30)]
    shards = tmp_path / "shards"
    (shards / "more").mkdir(parents=True)
    for name, part in (("more/b.JSONL", texts[10:20]), ("c.ndjson", texts[:10])):
        (shards / name).write_text("".join(json.dumps({"content": text}) + "\n" for text in part))
    pq.write_table(pa.table({"content": texts[20:]}), shards / "more" / "z.parquet")
    (shards / "README.md").write_text("About these files.")
    (shards / "_SUCCESS").touch()
    assert read(shards) == (texts, Counter({".md file": 1, "other file": 1}))
    assert len({d.group for d in documents(settings_for(shards), Counter())}) == 30
    (shards / "README.md").write_text("About these files. " * 10**4)
    assert read(shards)[1] == Counter({".jsonl file": 1, ".ndjson file": 1, ".parquet file": 1})


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (['{"content": "a"}', *['{"content": '] * 2], r"little text \(1 documents; skipped: 2 malformed\)"),
        (['{"content": "a"}', *['{"content": 1}'] * 2], r"little text \(1 documents; skipped: 2 not text\)"),
        (["{", ' "content": "a"', "}"], r"no text \(0 documents; skipped: 3 malformed\)"),
        ([], r"no text \(0 documents; skipped: 1 \.jsonl file\)"),
    ],
)
def test_records_that_mostly_are_none_are_refused(tmp_path, lines, reason):
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(SettingsError, match=rf"data\.corpus: .*a\.jsonl' holds {reason}"):
        local_corpus(settings_for(tmp_path / "a.jsonl"))


def test_a_corpus_that_cannot_be_had_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a.txt").write_bytes(b"\xff")
    reasons = {
        "empty": r"holds no text \(0 documents; skipped: nothing skipped\)",
        "binary": r"holds no text \(0 documents; skipped: 1 binary\)",
        "a.xlsx": r"not python-source, codeparrot or an existing path",
        "a" * 5000: r"cannot be read \(OSError: .*File name too long",
        "no\0path": r"not python-source, codeparrot or an existing path",
        "~no-such-user/corpus": r"not python-source, codeparrot or an existing path",
    }
    for name, reason in reasons.items():
        path = name if name.startswith("~") else tmp_path / name
        with pytest.raises(SettingsError, match=rf"data\.corpus: .*{reason}") as error:
            local_corpus(settings_for(path))
        assert "\n" not in str(error.value)


def test_an_empty_file_is_an_empty_document_and_a_name_need_not_be_utf8(folder):
    known = local_corpus(settings_for(folder)).identity
    (folder / "empty.py").touch()
    os.rename(folder / "group3", os.fsencode(folder) + b"/gr\xff\xfe")
    assert len(read(folder)[0]) == 25
    assert local_corpus(settings_for(folder)).identity != known


def test_a_text_file_is_cut_into_blocks_at_line_ends(tmp_path):
    whole = "".join(source(f"r{i}") for i in range(90))
    (tmp_path / "a.txt").write_text(whole)
    found = [*documents(settings_for(tmp_path / "a.txt"), Counter())]
    assert "".join(d.text for d in found) == whole
    assert all(corpus.BLOCK <= len(d.text) < 2 * corpus.BLOCK and d.text.endswith("\n") for d in found[:-1])
    assert len({d.group for d in found}) == len(found)


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """A package as an installer leaves it, RECORD included."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    record = ["../bin/script.py,sha256=machine,1"]
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
        found = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record.append(f"{file},sha256={found},{len(text)}")
    (info / "RECORD").write_text("\n".join(record) + "\n")


def test_python_source_is_checked_against_record(tmp_path, monkeypatch):
    files = {f"fakepkg/g{g}/m{m}.py": source(f"p{g}y{m}") for g in range(12) for m in range(2)}
    install(tmp_path / "site", "fakepkg", {**files, "fakepkg/table.py": "T = [" + "12345, " * 99 + "]\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(corpus, "PYTHON_SOURCE_PACKAGES", ("fakepkg",))
    settings = settings_for("python-source")
    found = [*documents(settings, Counter())]
    assert sorted(d.text for d in found) == sorted(files.values())
    assert {d.group for d in found} == {f"fakepkg/g{g}" for g in range(12)}
    facts = {"duplicates": 0, "skipped": {"number table": 1}, "packages": {"fakepkg": "1.0"}}
    assert local_corpus(settings).facts == facts
    changed = tmp_path / "site" / "fakepkg" / "g3" / "m1.py"
    changed.write_text("changed")
    with pytest.raises(SettingsError, match=r"package fakepkg .*fakepkg/g3/m1\.py differs from the package's RECORD"):
        local_corpus(settings)
    changed.unlink()
    with pytest.raises(SettingsError, match=r"package fakepkg .*FileNotFoundError.*fakepkg/g3/m1\.py"):
        local_corpus(settings)
    (tmp_path / "site" / "fakepkg-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(SettingsError, match=r"package fakepkg .*no RECORD of Python files"):
        local_corpus(settings)
    monkeypatch.setattr(corpus, "PYTHON_SOURCE_PACKAGES", ("no-such-package",))
    with pytest.raises(SettingsError, match=r"package no-such-package .*; install the locked versions"):
        local_corpus(settings)


def test_the_default_corpus_splits_sensibly():
    bytes_of: Counter[bool] = Counter()
    for document in documents(DataSettings(), Counter()):
        bytes_of[corpus.in_validation(document.group, 0.05)] += len(document.text)
    assert 0.03 < bytes_of[True] / bytes_of.total() < 0.12
    assert bytes_of.total() > 20e6


@pytest.fixture
def codeparrot(tmp_path) -> DataSettings:
    texts = [source(f"c{i}") for i in range(40)]
    pq.write_table(pa.table({"content": texts, "license": ["mit"] * 40}), tmp_path / "train.PARQUET")
    rows = [*({"content": text} for text in texts[:10]), {"content": None}]
    (tmp_path / "valid.ndjson").write_text("\n".join(map(json.dumps, rows)))
    files = {"train_files": str(tmp_path / "train.PARQUET"), "validation_files": str(tmp_path / "valid.ndjson")}
    return settings_for("codeparrot", max_documents=20, max_validation_documents=50, **files)


def changed(settings: DataSettings, **changes) -> DataSettings:
    return DataSettings(**{**vars(settings), **changes})


def test_codeparrot_from_local_files(codeparrot, tmp_path):
    found = parts(codeparrot, tmp_path / "arrow")
    loaded = datasets.load_dataset("parquet", data_files=codeparrot.train_files, split="train", cache_dir=str(tmp_path))
    assert found["train"] == loaded.shuffle(seed=0).select(range(20))["content"]
    assert sorted(found["validation"]) == sorted(loaded["content"][:10])
    made = corpus.codeparrot_corpus(codeparrot)
    made.load(tmp_path / "arrow")  # as after an interruption
    assert made.facts == {"duplicates": None, "skipped": {"not text": 1}}
    for wrong, reason in (
        ({"text_column": "body"}, r"data\.text_column: in .*train\.PARQUET: 'body' is not one of content, license"),
        ({"train_files": "absent.parquet"}, r"absent\.parquet cannot be loaded .*data\.train_files"),
        ({"train_files": "a.xlsx"}, r"data\.train_files: the suffix: '\.xlsx' is not one of \.jsonl, "),
        ({"train_files": "a.csv"}, r"data\.train_files: the suffix: '\.csv' is not one of \.jsonl, "),
    ):
        with pytest.raises(SettingsError, match=reason):
            parts(changed(codeparrot, **wrong), tmp_path / "wrong")
    pq.write_table(pa.table({"content": range(40)}), tmp_path / "train.PARQUET")
    assert corpus.codeparrot_corpus(codeparrot).identity != made.identity
    with pytest.raises(SettingsError, match=r"data\.text_column: 'content' is text in only 10 records"):
        parts(codeparrot, tmp_path / "numbers")


def test_a_pattern_of_files_is_known_by_all_of_them(codeparrot, tmp_path):
    def identity() -> str:
        return corpus.codeparrot_corpus(changed(codeparrot, train_files=str(tmp_path / "train*"))).identity

    known = [identity()]
    assert known == [corpus.codeparrot_corpus(codeparrot).identity]
    for content in (b"one", b"two"):
        (tmp_path / "train-2.parquet").write_bytes(content)
        known.append(identity())
    assert len({*known}) == 3


def test_codeparrot_streamed(codeparrot, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHUFFLE_WINDOW", 5)
    streamed = changed(codeparrot, streaming=True)
    found = parts(streamed, tmp_path / "arrow")
    texts = pq.read_table(codeparrot.train_files)["content"].to_pylist()
    places = [texts.index(text) for text in found["train"]]
    assert len({*places}) == 20
    assert max(places) < 25  # within the window
    assert places != sorted(places)
    assert len(found["validation"]) == 10
    Path(codeparrot.validation_files).write_text('{"content": "a"}\n{"content"')
    with pytest.raises(SettingsError, match=r"valid\.ndjson cannot be loaded"):
        parts(streamed, tmp_path / "broken")


def test_overlap_is_a_share_of_distinct_lines():
    train = ["a line that both of them have\nshort\n"]
    validation = ["  a line that both of them have\nshort\nnobody else has got this line\n"] * 2
    assert overlap(train, validation) == 0.5
    assert overlap(train, ["short"]) == 0.0
    lines = [f"line {i} of a long text" for i in range(400)]
    assert overlap(["\n".join(lines[:100])], lines) == 0.25
    assert overlap(["\n".join(lines[:100])], lines, most=200) == 0.5
