"""The sub-command: from an edge file to factors, recommendations, embeddings and their scores; resumed, and used wrongly."""

from __future__ import annotations

import json
import re

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["svd", "train.parquet", "--out", "f", "--rank", "0"], r"--rank 0; expected an integer"),
        (["svd", "train.parquet", "--out", "train.parquet"], r"--out train.parquet cannot be a folder"),
        (["svd", "train.parquet", "--out", "f", "--every", "0"], r"--every 0 rows; expected at least 1"),
        (
            ["svd", "train.parquet", "--out", "f", "--state", "no/g.svd"],
            r"there is no folder '.*no' to write 'g.svd' into",
        ),
        (["svd", "empty", "--out", "f"], r"'empty' holds no file to read"),
        (["svd", "notes.txt", "--out", "f"], r"the suffix of 'notes.txt' does not say"),
        (["svd", "rows.npy", "--out", "f"], r"'rows.npy' cannot be read as edges; expected .parquet"),
        (["recommend", "none.svd", "--out", "top.parquet"], r"there is no file 'none.svd'"),
        (["recommend", "g.svd", "--out", "top.parquet", "--users", "ann"], r"--users ann is no integer"),
        (["recommend", "g.svd", "--out", "top.parquet", "--users", "99999"], r"first is 99999; give histories"),
        (["recommend", "g.svd", "--out", "top.parquet", "--k", "0"], r"--k 0 items for each user"),
        (["recommend", "g.svd", "--out", "top.parquet", "--histories", "text.parquet"], r"item ids are of type string"),
        (["eval", "g.svd", "none.parquet"], r"'none.parquet' does not exist"),
        (["eval", "g.svd", "header.csv"], r"header.csv has no edges"),
        (["eval", "empty", "test.parquet", "--train", "train.parquet"], r"'empty' holds no training.json"),
        (["train", "train.parquet", "--out", "m", "--factors", "empty"], r"'empty' holds no manifest.json"),
        (["train", "train.parquet", "--out", "m", "--epochs", "0"], r"--epochs 0; expected an integer"),
    ],
)
def test_wrong_use_is_said_before_any_work_and_leaves_nothing(here, capsys, words, said):
    pytest.importorskip("torch")
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("hello")
    (here / "header.csv").write_text("user,item\n")
    np.save("rows.npy", np.zeros((2, 2)))
    pq.write_table(pa.table({"user": ["ann"], "item": ["x"]}), "text.parquet")
    assert (
        run(app, ["svd", "train.parquet", "--rank", "4", "--regularise", "0.5", "--out", "f0", "--state", "g.svd"]) == 0
    )
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert run(app, words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err), err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", ["torn.parquet", "torn.csv", "torn.arrow"])
def test_a_damaged_file_is_named(here, capsys, name):
    (here / name).write_bytes(b"\x00no\n\n1,2,3")
    assert run(app, ["svd", name, "--out", "f"]) == 1
    assert re.search(rf"'{name}' cannot be read: it is damaged|lacks user and item", capsys.readouterr().err)
    assert not (here / "f").exists()


def test_folders_of_spark_are_read_and_their_marks_passed_over(here, capsys):
    (here / "day").mkdir()
    (here / "train.parquet").rename(here / "day" / "part-0.parquet")
    (here / "day" / "_SUCCESS").write_text("")
    assert said(capsys, "svd", "day", "--rank", "4", "--regularise", "0.5", "--out", "f")["edges"] == 800


def test_factors_of_another_graph_and_devices_that_are_not_there_are_refused(here):
    pytest.importorskip("torch")
    from streamsvd.pipelines.graph import GraphSVD, LightGCL

    other = GraphSVD(rank=2, regularise=0.5).update({"user": ["a", "b", "a"], "item": ["x", "y", "y"]}).refresh()
    with pytest.raises(ValueError, match=r"none of the \d+ users of the edges \(int64\) has factors \(string\)"):
        LightGCL(epochs=1).fit(pq.read_table("train.parquet"), factors=other)
    with pytest.raises(ValueError, match=r"device='abacus' cannot be used by torch here"):
        LightGCL(epochs=1, device="abacus", propagate="plain").fit(pq.read_table("train.parquet"))


def test_a_state_is_loaded_by_the_library_and_shown_by_its_own_command_alone(here, capsys):
    import streamsvd as ss
    from streamsvd.cli import main

    assert (
        run(app, ["svd", "train.parquet", "--rank", "4", "--regularise", "0.5", "--out", "f", "--state", "g.svd"]) == 0
    )
    graph = ss.load("g.svd")
    ss.save(graph, "h.svd")
    assert (here / "g.svd").read_bytes() == (here / "h.svd").read_bytes()
    capsys.readouterr()
    for words in (["inspect", "g.svd"], ["report", "g.svd", "--out", "r.html"]):
        assert main(words) == 1
        assert "holds a graph" in (err := capsys.readouterr().err)
        assert "streamsvd graph recommend" in err
    assert not (here / "r.html").exists()
