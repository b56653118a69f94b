"""The sub-command: from an edge file to factors, recommendations, embeddings and their scores; resumed, and used wrongly."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamsvd.launch import run
from streamsvd.pipelines.graph.cli import app
from streamsvd.pipelines.graph.synthetic import power_law


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edges = power_law(80, 50, 1000, communities=4, loyalty=0.95)
    pq.write_table(edges.slice(0, 800), "train.parquet")
    pq.write_table(edges.slice(800, 100), "valid.parquet")
    pq.write_table(edges.slice(900), "test.parquet")
    return tmp_path


def said(capsys, *words: str) -> dict:
    assert run(app, [*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_from_an_edge_file_to_recommendations_and_a_trained_model(here, capsys):
    pytest.importorskip("torch")
    options = ["--rank", "4", "--out", "factors", "--state", "g.svd", "--validation", "valid.parquet"]
    first = said(capsys, "svd", "train.parquet", *options)
    assert first["edges"] == 800
    assert (here / "factors" / "manifest.json").exists()
    top = said(capsys, "recommend", "g.svd", "--out", "top.parquet", "--k", "5")
    assert top["rows"] == pq.read_table("top.parquet").num_rows == 5 * first["users"]
    user = str(pq.read_table("top.parquet")["user"][0].as_py())
    assert said(capsys, "recommend", "g.svd", "--out", "one.parquet", "--users", user, "--k", "3")["rows"] == 3
    pq.write_table(
        pa.table({"user": ["new"], "item": pq.read_table("train.parquet")["item"].slice(0, 1)}), "new.parquet"
    )
    assert said(capsys, "recommend", "g.svd", "--out", "new-top.parquet", "--histories", "new.parquet")["rows"] == 20
    train = ["--factors", "factors", "--validation", "valid.parquet", "--epochs", "2", "--width", "8", "--out", "model"]
    assert said(capsys, "train", "train.parquet", *train)["recall@20"] > 0
    for source in (["g.svd"], ["model", "--train", "train.parquet"]):
        assert said(capsys, "eval", source[0], "test.parquet", *source[1:])["recall@20"] > 0.2


def test_a_run_that_is_repeated_leaves_out_what_it_had_and_other_options_are_refused(here, capsys):
    words = ["svd", "train.parquet", "--rank", "4", "--regularise", "0.5", "--out", "factors", "--state", "g.svd"]
    assert said(capsys, *words)["rows_read"] == 800
    assert said(capsys, *words)["rows_read"] == 0
    assert said(capsys, *words[:2], "test.parquet", *words[2:])["edges"] == 900
    assert run(app, [*words, "--normalise", "sym", "--seed", "7"]) == 2
    assert "other options: --seed 0 there, --seed 7 here" in capsys.readouterr().err


def test_edges_that_cannot_be_taken_name_the_batch_and_row(here, capsys):
    pq.write_table(pa.table({"user": [1, 1], "item": [2, 2]}), "twice.parquet")
    assert run(app, ["svd", "twice.parquet", "--rank", "1", "--out", "f"]) == 1
    assert "batch 'twice.parquet:0', row 1: adds the edge (1, 2)" in capsys.readouterr().err
    assert run(app, ["svd", "nowhere.parquet", "--rank", "1", "--out", "f"]) == 2
    assert run(app, ["recommend", "g.svd", "--out", "top.csv"]) == 2
    assert not (here / "f").exists()
    assert run(app, ["eval", "factors", "test.parquet", "--by", "embeddings"]) == 2
    assert "add --train FILE" in capsys.readouterr().err


def test_factors_are_written_while_rows_arrive(here, capsys):
    words = ["svd", "train.parquet", "--rank", "4", "--regularise", "0.5", "--out", "factors", "--every", "300"]
    assert said(capsys, *words)["version"] == 3
    assert np.isfinite(said(capsys, *words, "--duplicates", "ignore")["captured_energy"])
