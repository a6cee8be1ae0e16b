"""Where rows come from: files, folders, and data sets of the hub.

A name that begins with a dot or slash, or ends like a file, is a path and never asked for at the
hub. The hub is asked once and briefly, so that a mistyped folder is an error at once.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefmix.policies.errors import TrainError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_FILE_ENDS = (
    ".jsonl",
    ".json",
    ".parquet",
    ".jsonl.gz",
    ".ndjson",
    ".csv",
    ".txt",
    ".gz",
    ".arrow",
)
_HUB_PATIENCE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """The place of some rows."""

    name: str
    """A path or a hub id."""
    split: str | None = None
    """Part of a folder or hub id; None is `train`, or the only one."""
    subset: str | None = None
    """Configuration of a hub id."""
    is_local: bool = False
    """True if the name is a path, whatever it looks like."""

    @property
    def title(self) -> str:
        """A short name for messages."""
        return Path(self.name).name

    def __str__(self) -> str:
        parts = [self.name, self.subset, self.split]
        return " ".join(part for part in parts if part)


def may_be_hub_id(name: str) -> bool:
    """True if a name has the form `organisation/name`, and not that of a file or path."""
    return _HUB_ID.fullmatch(name) is not None and not name.endswith(_FILE_ENDS)


def check_there(source: Source) -> None:
    """Raises TrainError for a missing path; what may be a hub id is left to `raw_rows`."""
    is_path = source.is_local or not may_be_hub_id(source.name)
    if is_path and not Path(source.name).expanduser().exists():
        raise TrainError(_absent(source))


def raw_rows(source: Source) -> Iterator[tuple[str, Any]]:
    """Yields (name of the row, row) of JSON Lines, JSON, Parquet, a folder or a hub id.

    Raises: TrainError.
    """
    path = Path(source.name).expanduser()
    if path.is_dir():
        return _dataset_rows(_of_folder(path, source), source.title)
    if path.exists():
        return _file_rows(path, source)
    return _dataset_rows(_of_hub(source), source.title)


def _file_rows(path: Path, source: Source) -> Iterator[tuple[str, Any]]:
    if source.split is not None or source.subset is not None:
        raise TrainError(f"{path} is one file and has no splits; leave the split out")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return _json_rows(path)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise TrainError(f"cannot read {path} as Parquet: {_line(error)}") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TrainError(f"cannot read {path} as UTF-8 text: {error}") from None
    if text.lstrip().startswith("["):
        yield from _array_rows(path, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name = f"{path.name} line {number}"
        try:
            yield name, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "it is nested too deeply")
            raise TrainError(f"{name} is not JSON: {reason}") from None


def _array_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The elements of one JSON array; or lines that are arrays, which are refused by name."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise TrainError(
            f"{path.name} line {error.lineno} is not JSON: {error.msg}; expected one object a "
            "line, or one array of objects"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{path.name} row {number}", row


def _of_folder(path: Path, source: Source) -> Any:
    from datasets import load_dataset, load_from_disk

    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            return _chosen_split(load_from_disk(str(path)), source)
        if any(path.rglob("*.parquet")) or any(path.rglob("*.json*")):
            return _chosen_split(load_dataset(str(path), source.subset), source)
    except TrainError:
        raise
    except Exception as error:  # datasets and Arrow raise any kind
        raise TrainError(f"cannot read the folder {path}: {_line(error)}") from None
    raise TrainError(
        f"{path} is no folder of datasets' save_to_disk, and has no JSON or Parquet files"
    )


def _of_hub(source: Source) -> Any:
    check_there(source)
    from datasets import load_dataset

    reason = _hub_refusal(source.name)
    if reason is not None and not _is_cached(source.name):
        raise TrainError(
            f"{_absent(source)}, and the hub gives no data set of that name ({reason}); give a "
            "file, a folder, or a hub id that can be reached"
        )
    try:
        return _chosen_split(load_dataset(source.name, source.subset), source)
    except TrainError:
        raise
    except Exception as error:  # datasets, Arrow and the hub's client raise any kind
        raise TrainError(f"cannot load the data set {source.name}: {_line(error)}") from None


def _absent(source: Source) -> str:
    return f"there is no file or folder {source.name}"


def _hub_refusal(name: str) -> str | None:
    """The reason for which the hub gives no such data set; None if it does. Asks once."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, timeout=_HUB_PATIENCE_S)
    except Exception as error:  # of the hub's client, and of any of its layers
        return _line(error)
    return None


def _is_cached(name: str) -> bool:
    """True if an earlier run has downloaded the data set, which is then read offline."""
    from datasets import config

    cached = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    return cached.is_dir() and any(cached.iterdir())


def _chosen_split(dataset: Any, source: Source) -> Any:
    """The split that was asked for. Raises: TrainError naming those that there are."""
    from datasets import DatasetDict

    if not isinstance(dataset, DatasetDict):
        if source.split not in (None, str(dataset.split)):
            raise TrainError(
                f"{source.name} has no split {source.split!r}: it is a data set without splits"
            )
        return dataset
    wanted = source.split or "train"
    if wanted not in dataset:
        option = "; name one with --split" if source.split is None else ""
        raise TrainError(
            f"{source.name} has the splits {', '.join(dataset)}; expected {wanted!r}{option}"
        )
    return dataset[wanted]


def _dataset_rows(dataset: Any, title: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(dataset, start=1):
        yield f"{title} row {number}", dict(row) if isinstance(row, Mapping) else row


def _line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line), type(error).__name__)
    return first[:200].replace(os.linesep, " ").rstrip(".")
