"""Files, folders and data sets of the hub give the same rows; what is missing is said at once."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefmix.policies.data.pairs import PAIR_FIELDS, read_rows
from prefmix.policies.data.sources import Source
from prefmix.policies.errors import TrainError

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"q{i} ü"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no\u2028line"}],
        "score": i,
    }
    for i in range(3)
]

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs the train extra: make setup-train"
)


def _lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_files_of_all_kinds_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(_lines(ROWS), encoding="utf-8")
    (tmp_path / "marked.jsonl").write_text("\ufeff" + _lines(ROWS), encoding="utf-8")
    (tmp_path / "windows.jsonl").write_text(_lines(ROWS).replace("\n", "\r\n"), encoding="utf-8")
    (tmp_path / "lines.json").write_text(_lines(ROWS), encoding="utf-8")
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_lines(ROWS).encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    found = {path.name: read_rows(path, PAIR_FIELDS) for path in tmp_path.iterdir()}
    assert len(found) == 7
    assert len({rows.sha256 for rows in found.values()}) == 1
    assert all(rows.columns == {"score": [0, 1, 2]} for rows in found.values())
    assert found["a.parquet"].names[2] == "a.parquet row 3"
    assert found["array.json"].names[0] == "array.json row 1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.parquet", b"PAR1 no", "cannot read .*bad.parquet as Parquet"),
        ("bad.jsonl.gz", b"no", "cannot read .*bad.jsonl.gz"),
        ("bad.json", b'[{"prompt": 1', "bad.json line 1 is not JSON"),
        ("empty.json", b"[]", "empty.json holds no rows"),
        ("empty.jsonl", b"", "empty.jsonl holds no rows"),
        ("latin.jsonl", b'{"prompt": "\xfc"}', "as UTF-8 text"),
        ("deep.jsonl", b"\n" + b'{"a":' * 100_000, "deep.jsonl line 2 is not JSON"),
        ("words.json", b'["a", "b"]', "words.json row 1 is 'a'; expected an object"),
    ],
)
def test_damaged_files_are_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainError, match=message) as caught:
        read_rows(tmp_path / name, PAIR_FIELDS)
    assert len(str(caught.value).splitlines()) == 1


def test_parquet_without_rows_or_columns_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(TrainError, match=r"empty\.parquet holds no rows"):
        read_rows(tmp_path / "empty.parquet", PAIR_FIELDS)
    pq.write_table(table.drop(["chosen"]), tmp_path / "less.parquet")
    with pytest.raises(TrainError, match=r"less\.parquet row 1 has no 'chosen', only prompt"):
        read_rows(tmp_path / "less.parquet", PAIR_FIELDS)


def test_a_mistyped_path_is_missing_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these names is asked for at the hub."""
    monkeypatch.setattr(
        "prefmix.policies.data.sources._hub_refusal", lambda name: pytest.fail(name)
    )
    monkeypatch.chdir(tmp_path)
    for name in ("pairs", "./data/pairs", "../pairs", "/gone/pairs", "~/gone", "data/pairs.jsonl"):
        with pytest.raises(TrainError, match="there is no file or folder"):
            read_rows(Source(name=name), PAIR_FIELDS)
    with pytest.raises(TrainError, match="there is no file or folder data/pairs"):
        read_rows(Path("data/pairs"), PAIR_FIELDS)
    (tmp_path / "pairs.jsonl").write_text(_lines(ROWS))
    with pytest.raises(TrainError, match="is one file and has no splits"):
        read_rows(Source(name="pairs.jsonl", split="test"), PAIR_FIELDS)


@needs_datasets
@pytest.mark.train
@pytest.mark.filterwarnings("ignore")
def test_the_hub_is_asked_once_and_its_refusal_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    asked: list[tuple[str, float]] = []

    def dataset_info(self: Any, name: str, *, timeout: float) -> None:
        asked.append((name, timeout))
        raise ConnectionError("no route to the hub\nand much more")

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    message = r"no file or folder org/pairs, and the hub .*\(no route to the hub\); give a"
    with pytest.raises(TrainError, match=message):
        read_rows(Source(name="org/pairs"), PAIR_FIELDS)
    assert asked == [("org/pairs", 10.0)]


@needs_datasets
@pytest.mark.train
@pytest.mark.filterwarnings("ignore")
def test_data_set_of_the_hub_is_loaded_by_split_and_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import HfApi

    def load_dataset(name: str, subset: str | None) -> Any:
        assert (name, subset) == ("org/pairs", "english")
        whole = datasets.Dataset.from_list(ROWS)
        return datasets.DatasetDict(train_prefs=whole, test_prefs=whole.select([1]))

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Source(name="org/pairs", subset="english", split="test_prefs")
    found = read_rows(source, PAIR_FIELDS)
    assert found.names == ("pairs row 1",)
    assert found.columns == {"score": [1]}
    with pytest.raises(
        TrainError, match="has the splits train_prefs, test_prefs; expected 'train'"
    ):
        read_rows(Source(name="org/pairs", subset="english"), PAIR_FIELDS)


@needs_datasets
@pytest.mark.train
@pytest.mark.filterwarnings("ignore")
def test_folders_of_data_files_and_of_saved_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "repository" / "data"
    repository.mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(ROWS), repository / f"{split}-00000-of-00001.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    hashes = {
        read_rows(Source(name=str(repository.parent), split=split), PAIR_FIELDS).sha256
        for split in ("train", "test", None)
    }
    assert hashes == {read_rows(tmp_path / "saved", PAIR_FIELDS).sha256}
    with pytest.raises(TrainError, match="has the splits train, test; expected 'dev'"):
        read_rows(Source(name=str(repository.parent), split="dev"), PAIR_FIELDS)
    with pytest.raises(TrainError, match="has no split 'dev'"):
        read_rows(Source(name=str(tmp_path / "saved"), split="dev"), PAIR_FIELDS)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(TrainError, match="has no JSON or Parquet files"):
        read_rows(tmp_path / "nothing", PAIR_FIELDS)
