from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ctr_tables import counts_table, table, vectors, write

pytest.importorskip("torch")

from streamsvd.launch import run
from streamsvd.pipelines.ctr.cli import app
from streamsvd.pipelines.ctr.synthetic import clicks


def said(capsys, *words: object) -> dict:
    code = run(app, [*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def refused(capsys, *words: object) -> str:
    assert run(app, list(map(str, words))) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks")
    for seed, name in enumerate(("train", "test", "later")):
        pq.write_table(clicks(3000, {"user": 200, "item": 400, "hour": 5}, seed=seed), folder / f"{name}.parquet")
    return folder


def test_train_compress_eval_and_refresh_a_model(logs, capsys) -> None:
    train, test, later = (logs / f"{name}.parquet" for name in ("train", "test", "later"))
    trained = said(capsys, "train", train, "--out", logs / "model", "--epochs", 4, "--batch", 256, "--dim", 8)
    assert trained["fields"] == 3
    done = said(capsys, "compress", logs / "model", "--log", train, "--rank", 4, "--out", logs / "small")
    assert done["bytes_after"] < done["bytes_before"]
    found = said(
        capsys, "eval", logs / "model", test, "--compressed", logs / "small", "--log", train, "--out", logs / "r.html"
    )
    assert found["before"]["auc"] > 0.55
    assert found["after"]["auc"] > 0.55
    assert "Bytes against AUC" in (logs / "r.html").read_text()
    assert said(capsys, "eval", logs / "model", test)["auc"] == pytest.approx(found["before"]["auc"])
    fresh = said(capsys, "refresh", logs / "small", logs / "model", "--log", later)
    assert set(fresh["moves"]) == {"user", "item", "hour"}
    said(capsys, "train", train, "--out", logs / "other", "--epochs", 1, "--dim", 8, "--seed", 1)
    assert "was compressed from model" in refused(capsys, "eval", logs / "other", test, "--compressed", logs / "small")


def test_tables_and_counts_from_files(tmp_path, capsys) -> None:
    parts = {"item": vectors(300, 8), "user": vectors(100, 8, 1)}
    tables = write(tmp_path / "t.parquet", table(parts))
    pq.write_table(pa.table({"item": np.arange(300), "user": np.arange(300) % 100}), tmp_path / "log.parquet")
    said(capsys, "counts", tmp_path / "log.parquet", "--fields", "item,user", "--out", tmp_path / "c.parquet")
    a = said(
        capsys, "compress", tables, "--counts", tmp_path / "c.parquet", "--budget-bytes", 5000, "--out", tmp_path / "a"
    )
    b = said(
        capsys,
        "compress",
        tables,
        "--log",
        tmp_path / "log.parquet",
        "--fields",
        "item,user",
        "--budget-bytes",
        5000,
        "--out",
        tmp_path / "b",
    )
    assert a["fields"] == b["fields"]
    assert run(app, ["refresh", str(tmp_path / "a"), tables, "--counts", str(tmp_path / "c.parquet")]) == 0
    assert "renewed" in capsys.readouterr().out


def test_wrong_use_is_one_sentence(tmp_path, capsys) -> None:
    tables = write(tmp_path / "t.parquet", table({"item": vectors(30, 4)}))
    counts = write(tmp_path / "c.parquet", counts_table({"item": np.ones(30)}))
    assert "--counts FILE or from --log" in refused(capsys, "compress", tables, "--rank", 2, "--out", tmp_path / "o")
    message = refused(capsys, "compress", tables, "--counts", counts, "--rank", 9, "--out", tmp_path / "o")
    assert "from 1 to 4" in message
    assert "--rank 9" in message
    assert "no manifest.json" in refused(capsys, "refresh", tmp_path / "none", tables, "--counts", counts)
    assert "no column 'click'" in refused(capsys, "train", tables, "--label", "click", "--out", tmp_path / "m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train torn.parquet --out m", "'torn.parquet' cannot be read: it is damaged"),
        ("train empty.parquet --out m", "the log has no rows"),
        ("train train.parquet --out m --epochs 0", "--epochs 0 arrived; expected a whole number of at least 1"),
        ("train train.parquet --out m --dim 0", "--dim 0 arrived"),
        ("train train.parquet --out m --batch 0", "--batch 0 arrived"),
        ("train train.parquet --out train.parquet", "--out train.parquet cannot be a folder"),
        ("counts empty.parquet --fields user --out c.parquet", "empty.parquet has no ids in user"),
        ("counts torn.parquet --fields user --out c.parquet", "'torn.parquet' cannot be read: it is damaged"),
        (
            "compress rows.npy --counts counts.parquet --rank 2 --out s",
            "'rows.npy' is an array without the name of a field",
        ),
        ("compress torn.safetensors --counts counts.parquet --rank 2 --out s", "'torn.safetensors' cannot be read"),
        ("compress tables.parquet --counts counts.parquet --rank 9 --out s", "--rank 9 arrived"),
        ("eval m test.parquet --out page.html", "--log and --out are for the report of a compressed model"),
    ],
)
def test_wrong_use_is_said_and_leaves_nothing(logs, tmp_path, monkeypatch, capsys, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    log = pq.read_table(logs / "train.parquet")
    pq.write_table(log, "train.parquet")
    pq.write_table(log.slice(0, 0), "empty.parquet")
    for name in ("torn.parquet", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"hello, this is no table")
    np.save("rows.npy", np.zeros((4, 2)))
    rng = np.random.default_rng(0)
    columns = {"field": ["a"] * 9, "id": list(range(9)), "vector": vectors_of(rng.standard_normal((9, 4)))}
    pq.write_table(pa.table(columns), "tables.parquet")
    pq.write_table(pa.table({"field": ["a"] * 9, "id": list(range(9)), "count": [1.0] * 9}), "counts.parquet")
    before = sorted(tmp_path.rglob("*"))
    assert said in refused(capsys, *words.split())
    assert sorted(tmp_path.rglob("*")) == before


def vectors_of(x: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float32).ravel()), x.shape[1])
