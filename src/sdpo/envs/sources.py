"""Where task files come from: a file, a folder with training and test files, or the hub.

A file is `.json` or `.jsonl` (rows, or one array), `.csv` or `.tsv` with a head line, or
`.parquet`; text files may be compressed (`.gz`). A folder's files are told apart by their names:
`train-00000-of-00001.parquet` holds training rows, `test.json` rows for evaluation. When it has
only one kind, its rows are split like those of a file. Parquet and the hub need the extra `data`.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.envs.table import MAX_LINE_BYTES, Line, open_file, read_lines
from sdpo.errors import ConfigError, TaskError

HUB = "hub:"
TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("test", "eval", "validation", "valid", "val", "dev")
"""Names of held-out files and hub splits; of several, the first is taken."""
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""In the order of preference where a folder has one file in several formats."""
NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "state.json", "config.json")
"""Files about a data set that lie beside it."""
NEEDS_EXTRA = "{setting} = {source!r} needs {package}: pip install 'sdpo[data]'"


def read_sources(tasks: str, eval_tasks: str, fields: Mapping[str, str]) -> Iterator[Line]:
    """The rows of `env.tasks` and, if given, `env.eval_tasks`, with their columns called as
    `fields` says, one at a time.

    With `eval_tasks`, every row has a split: `tasks` gives the training rows, `eval_tasks` those
    for evaluation; of a folder or data set that has both, only the fitting ones are taken.
    """
    if not eval_tasks:
        lines = read_source(tasks)
    else:
        held_out = read_source(eval_tasks, setting="env.eval_tasks")
        lines = itertools.chain(
            _only(read_source(tasks), "train", f"env.tasks = {tasks!r}"),
            _only(held_out, "eval", f"env.eval_tasks = {eval_tasks!r}"),
        )
    return (renamed(line, fields) for line in lines) if fields else lines


def _only(lines: Iterator[Line], split: str, name: str) -> Iterator[Line]:
    num_rows = 0
    for line in lines:
        if line.split in (None, split):
            num_rows += 1
            yield replace(line, split=split)
    if not num_rows:
        raise TaskError(f"{name} has no {split} rows")


def read_source(source: str, *, setting: str = "env.tasks") -> Iterator[Line]:
    """The rows of a file, a folder or a hub data set, one at a time."""
    if source.startswith(HUB):
        yield from _hub_rows(source, setting)
        return
    path = Path(source).expanduser()
    if path.is_dir():
        for file, split in _files_of(path, setting):
            for line in _file_rows(file, setting):
                yield replace(line, split=split)
        return
    yield from _file_rows(path, setting)


def _file_rows(path: Path, setting: str) -> Iterator[Line]:
    match _suffix(path):
        case ".parquet":
            return _parquet_rows(path, setting)
        case ".csv":
            return _table_rows(path, ",")
        case ".tsv":
            return _table_rows(path, "\t")
        case _:
            return read_lines(path)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _files_of(folder: Path, setting: str) -> list[tuple[Path, str | None]]:
    """The files of a folder (of its `data` folder if it has none itself) and their splits."""
    files = _readable(folder) or _readable(folder / "data")
    if not files:
        raise TaskError(
            f"{setting} = {str(folder)!r}: no file of rows in this folder "
            f"({', '.join(SUFFIXES)}; like train.json and test.json)"
        )
    train = [file for file in files if _is_called(file, TRAIN_NAMES)]
    held_out: list[Path] = []
    for name in EVAL_NAMES:
        held_out = held_out or [file for file in files if _is_called(file, (name,))]
    if train and held_out:
        return [(file, "train") for file in train] + [(file, "eval") for file in held_out]
    return [(file, None) for file in files]


def _readable(folder: Path) -> list[Path]:
    """Its task files by name; one where the same stands there in several formats."""
    chosen: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(folder.glob(f"*{suffix}")) + sorted(folder.glob(f"*{suffix}.gz")):
            if path.name in NOT_ROWS:
                continue
            chosen.setdefault(path.name.removesuffix(".gz").removesuffix(suffix), path)
    return sorted(chosen.values())


def _is_called(path: Path, names: Iterable[str]) -> bool:
    return bool(set(re.split(r"[^a-z]+", path.name.lower())) & set(names))


def _table_rows(path: Path, delimiter: str) -> Iterator[Line]:
    """Rows of a table with a head line; every value is a string."""
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with open_file(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for number, row in enumerate(reader, start=2):
                if None in row or None in row.values():
                    raise TaskError(
                        f"{path}:{reader.line_num}: not as many values as the head line has columns"
                    )
                yield Line(path=str(path), number=number, row=row)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"cannot read {path}: {error}") from error


def _parquet_rows(path: Path, setting: str) -> Iterator[Line]:
    try:
        import pyarrow  # an extra
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            NEEDS_EXTRA.format(setting=setting, source=str(path), package="pyarrow")
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield Line(path=f"{path} (row)", number=number, row=row)
    except (OSError, pyarrow.ArrowException) as error:
        raise TaskError(f"cannot read {path}: {error}") from error


def _hub_rows(source: str, setting: str) -> Iterator[Line]:
    name, _, wanted = source.removeprefix(HUB).partition(":")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ConfigError(
            f"{setting} = {source!r}: write hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or "
            "hub:OWNER/NAME/CONFIGURATION:SPLIT"
        )
    try:
        splits = load_hub("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)
    except ImportError as error:
        raise ConfigError(
            NEEDS_EXTRA.format(setting=setting, source=source, package="datasets")
        ) from error
    except (OSError, ValueError) as error:  # What `datasets` raises for names it does not find
        raise TaskError(f"{setting} = {source!r}: {error}") from error
    for split, ours in _hub_splits(splits, wanted, f"{setting} = {source!r}"):
        for number, row in enumerate(splits[split], start=1):
            yield Line(path=f"{HUB}{name}:{split}", number=number, row=row, split=ours)


def _hub_splits(splits: Mapping[str, Any], wanted: str, where: str) -> list[tuple[str, str | None]]:
    """Names of the splits to read, and what they are to us."""
    if wanted:
        if wanted not in splits:
            raise TaskError(f"{where}: no split {wanted!r}; it has {', '.join(splits)}")
        return [(wanted, None)]
    train = [(name, "train") for name in splits if name in TRAIN_NAMES]
    held_out = [(name, "eval") for name in EVAL_NAMES if name in splits][:1]
    if train and held_out:
        return [*train, *held_out]
    if len(splits) > 1:
        raise TaskError(f"{where}: add :SPLIT; it has {', '.join(splits)}")
    return [(name, None) for name in splits]


def load_hub(name: str, configuration: str | None) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """The splits of a data set of the Hugging Face hub; the only call of ours that loads one."""
    import datasets  # an extra

    found = datasets.load_dataset(name, configuration)
    return {str(split): rows for split, rows in found.items()}


def renamed(line: Line, fields: Mapping[str, str]) -> Line:
    """`line` with the columns that `fields` names (`env.fields.OURS = "theirs"`) under our names;
    `reward_model.ground_truth` is a key inside a column."""
    row = dict(line.row)
    taken = [(ours, _inside(line, ours, theirs)) for ours, theirs in fields.items()]
    for theirs in fields.values():
        row.pop(theirs, None)
    return replace(line, row=row | dict(taken))


def _inside(line: Line, ours: str, theirs: str) -> Any:
    if theirs in line.row:
        return line.row[theirs]
    value: Any = line.row
    for part in theirs.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise line.error(
                theirs,
                f"no such column (env.fields.{ours} = {theirs!r}); the columns are "
                f"{', '.join(map(str, line.row))}",
            )
        value = value[part]
    return value
