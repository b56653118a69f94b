"""The command line: what each command does, with good and bad input, and what it says and leaves behind."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamsvd as ss
from streamsvd.cli import main
from streamsvd.settings import Settings

D = 12
COMMANDS = ["demo", "fit", "transform", "merge", "inspect"]


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, D)) * 0.6 ** np.arange(D) + 3.0).astype(np.float32)


def write(path: Path, X: np.ndarray) -> Path:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    names = pa.array([f"row {i}" for i in range(len(X))])
    pq.write_table(pa.table({"id": names, "embedding": lists, "age": np.ones(len(X))}), path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with two shards of one stream, in which every command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMSVD_DEBUG", raising=False)
    X = rows_of(700)
    write(tmp_path / "a.parquet", X[:400])
    write(tmp_path / "b.parquet", X[400:])
    columns = {"x": [1.0, 2.0, None, 4.0, 5.5], "y": [2.0, 1.0, 0.0, None, 7.0]}
    pq.write_table(pa.table(columns), tmp_path / "nulls.parquet")
    return tmp_path


@pytest.fixture
def model(folder) -> Path:
    path = folder / "model.svd"
    assert main(["fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding", "--out", str(path)]) == 0
    return path


@pytest.fixture
def values(capsys):
    """Runs a command with --json and returns the object that it printed."""

    def run(*tokens: str, code: int = 0) -> dict:
        capsys.readouterr()
        assert main([*tokens, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def process(*tokens: str, code: str = "", **options) -> subprocess.CompletedProcess[str]:
    start = f"{code}\nimport sys; from streamsvd.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start, *tokens], capture_output=True, text=True, check=False, **options
    )


# --- help


def test_help_fits_one_screen_and_lists_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert [word for line in lines for word in COMMANDS if line.startswith(f"│ {word} ")] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_settings_are_the_options_of_fit_with_the_same_defaults():
    options = inspect.signature(ss.fit).parameters
    for field in dataclasses.fields(Settings):
        assert field.name in options
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        assert default == options[field.name].default, field.name


# --- fit


def test_fit_says_and_writes_what_the_library_returns(values):
    said = values("fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding", "--out", "m.svd")
    expected = ss.fit(["a.parquet", "b.parquet"], rank=3, select="embedding")
    held = ss.load("m.svd")
    np.testing.assert_array_equal(held.vt, expected.vt)
    assert held.names == expected.names
    assert said["rows"] == 700
    assert [part["s"] for part in said["components"]] == expected.s.tolist()
    assert said["bound"]["residual"] == expected.bound.residual > 0
    assert said["plan"]["kind"] == "gram"
    assert said["rows_per_second"] > 0


def test_fit_takes_every_option(values):
    options = ["--kind", "truncated", "--kept", "7", "--no-center", "--half-life", "100", "--dtype", "float64"]
    options += ["--weights", "age", "--rank", "2"]
    said = values("fit", "[ab].parquet", "--select", "embedding", *options)
    assert (said["state"], said["kept"], said["center"], said["rank"]) == ("truncated", 7, False, 2)
    assert said["decay"] == 0.5**0.01
    expected = ss.fit(
        ["a.parquet", "b.parquet"], rank=2, select="embedding", kind="truncated", kept=7, center=False, half_life=100.0,
        dtype="float64", weights="age",
    )  # fmt: skip
    assert [part["s"] for part in said["components"]] == expected.s.tolist()


def test_fit_without_out_writes_nothing(values, folder):
    before = sorted(folder.iterdir())
    values("fit", "a.parquet", "--rank", "2", "--select", "embedding")
    assert sorted(folder.iterdir()) == before


def test_columns_can_be_listed_with_commas_unless_a_name_has_them(values, folder):
    X = rows_of(50)
    pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "a,b": X[:, 2], "c": X[:, 3]}), folder / "t.parquet")
    assert values("fit", "t.parquet", "--rank", "1", "--select", "c,b")["names"] == ["c", "b"]
    assert values("fit", "t.parquet", "--rank", "1", "--select", "a,b")["names"] == ["a,b"]
    assert values("fit", "t.parquet", "--rank", "1", "--select", "a", "--select", "c")["names"] == ["a", "c"]


def test_fit_reads_arrays_without_names(values, folder):
    np.save(folder / "x.npy", rows_of(60))
    said = values("fit", "x.npy", "--rank", "2")
    assert (said["rows"], said["columns"], said["names"]) == (60, D, [])


def test_dropped_rows_are_counted_and_make_exit_code_3(values, capsys):
    said = values("fit", "nulls.parquet", "--rank", "1", "--nulls", "drop", "--out", "n.svd", code=3)
    assert (said["rows"], said["dropped"]) == (3, 2)
    assert ss.load("n.svd").rows == 3
    assert main(["fit", "nulls.parquet", "--rank", "1", "--nulls", "drop"]) == 3
    assert "2 of 5 rows were left out" in capsys.readouterr().err


def test_people_read_a_table_and_no_progress_bar_on_a_pipe(capsys):
    assert main(["fit", "a.parquet", "--rank", "2", "--select", "embedding", "--kind", "truncated"]) == 0
    text = capsys.readouterr()
    assert "certified interval" in text.out
    assert "residual at most" in text.out
    assert "4 rows kept" in text.out or "12 rows kept" in text.out
    assert text.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_a_progress_bar():
    import pty

    leader, follower = pty.openpty()
    start = "import sys; from streamsvd.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "fit", "a.parquet", "--rank", "2", "--select", "embedding"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as running:
        os.close(follower)
        seen = b""
        try:
            while chunk := os.read(leader, 4096):
                seen += chunk
        except OSError:  # Linux says so when the other side is closed
            pass
        assert running.wait() == 0
    os.close(leader)
    assert b"400 rows" in seen


# --- transform


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_transform_writes_what_the_factors_return(model, values, suffix):
    said = values("transform", str(model), "b.parquet", "--out", f"z.{suffix}", "--anomaly")
    table = pq.read_table("z.parquet") if suffix == "parquet" else pa.ipc.open_file(f"z.{suffix}").read_all()
    factors, X = ss.load(model), rows_of(700)[400:]
    scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(scores, factors.transform(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table["residual"].to_numpy(), factors.residual(X), rtol=1e-4)
    np.testing.assert_allclose(table["leverage"].to_numpy(), factors.leverage(X), rtol=1e-4)
    assert (said["rows"], said["rank"], said["out"]) == (300, 3, f"z.{suffix}")


def test_transform_finds_the_columns_of_the_model_in_another_order(model, folder):
    table = pq.read_table("b.parquet")
    pq.write_table(table.select(["age", "embedding", "id"]), folder / "c.parquet")
    for name in ("b", "c"):
        assert main(["transform", str(model), f"{name}.parquet", "--out", f"z{name}.parquet", "--rank", "2"]) == 0
    zb, zc = pq.read_table("zb.parquet"), pq.read_table("zc.parquet")
    assert zb.schema.field("scores").type.list_size == 2
    assert zb.equals(zc)
    assert zb.num_rows == 300


def test_transform_drops_rows_and_says_so(folder, values):
    assert main(["fit", "nulls.parquet", "--rank", "1", "--nulls", "drop", "--out", "n.svd"]) == 3
    said = values("transform", "n.svd", "nulls.parquet", "--out", "z.parquet", "--nulls", "drop", code=3)
    assert (said["rows"], said["dropped"]) == (3, 2)
    assert pq.read_metadata("z.parquet").num_rows == 3


# --- merge, inspect


def test_merged_states_are_one_stream(values):
    for name in "ab":
        assert (
            main(["fit", f"{name}.parquet", "--rank", "3", "--select", "embedding", "--state", "--out", f"{name}.svd"])
            == 0
        )
    merged = values("merge", "a.svd", "b.svd", "--out", "ab.svd")
    whole = values("fit", "a.parquet", "b.parquet", "--rank", "3", "--select", "embedding")
    assert merged["rows"] == whole["rows"] == 700
    for one, other in zip(merged["components"], whole["components"], strict=True):
        assert one["s"] == pytest.approx(other["s"], rel=1e-6)
        assert one["lower"] <= other["s"] * (1 + 1e-6)
    assert values("inspect", "ab.svd")["components"] == merged["components"]
    assert main(["transform", "ab.svd", "a.parquet", "--select", "embedding", "--out", "z.parquet"]) == 0


def test_inspect_says_the_same_of_a_state_and_of_its_factors(values):
    shared = ["fit", "a.parquet", "--rank", "3", "--select", "embedding", "--kind", "truncated", "--out"]
    assert main([*shared, "state.svd", "--state"]) == 0
    assert main([*shared, "factors.svd"]) == 0
    of_state, of_factors = values("inspect", "state.svd"), values("inspect", "factors.svd")
    assert (of_state["kind"], of_factors["kind"], of_factors["state"]) == ("truncated", "factors", "truncated")
    for name in ("rows", "columns", "rank", "kept", "plan", "bound", "components", "energy"):
        assert of_state[name] == of_factors[name], name


def test_inspect_shows_a_state_without_rows(folder, values, capsys):
    ss.save(ss.sketch(columns=5, rank=2), folder / "empty.svd")
    assert values("inspect", "empty.svd")["rows"] == 0
    assert main(["inspect", "empty.svd"]) == 0
    assert "no rows yet" in capsys.readouterr().out


# --- what goes wrong

FIT = ["fit", "a.parquet", "--select", "embedding", "--rank"]
WRONG = {
    "no such command": (["fitt"], 2, ["fitt"]),
    "no such option": ([*FIT, "2", "--krept", "9"], 2, ["--krept", "--help"]),
    "no data": (["fit", "--rank", "2"], 2, ["DATA"]),
    "no rank": (["fit", "a.parquet"], 2, ["--rank"]),
    "rank is no number": ([*FIT, "two"], 2, ["--rank", "two"]),
    "rank too large": ([*FIT, "13"], 2, ["--rank 13", "1 .. 12"]),
    "rank zero": ([*FIT, "0"], 2, ["--rank 0", "1 .. 12"]),
    "unknown kind": ([*FIT, "2", "--kind", "qr"], 2, ["qr", "gram", "truncated"]),
    "decay out of range": ([*FIT, "2", "--decay", "1.5"], 2, ["--decay 1.5"]),
    "half-life without unit": ([*FIT, "2", "--half-life", "soon"], 2, ["--half-life", "soon"]),
    "half-life without times": ([*FIT, "2", "--half-life", "30s"], 2, ["--half-life 30s", "--timestamps"]),
    "times without half-life": ([*FIT, "2", "--timestamps", "age"], 2, ["--timestamps age", "--half-life"]),
    "kept below rank": ([*FIT, "3", "--kept", "2"], 2, ["--kept 2", "--rank 3"]),
    "missing file": (["fit", "zz.parquet", "--rank", "2"], 2, ["zz.parquet", "does not exist"]),
    "empty pattern": (["fit", "zz*.parquet", "--rank", "2"], 2, ["zz*.parquet"]),
    "unknown suffix": (["fit", "model.txt", "--rank", "2"], 2, ["model.txt"]),
    "missing column": ([*FIT, "2", "--weights", "mass"], 2, ["'mass'", "'id', 'embedding', 'age'"]),
    "state without out": ([*FIT, "2", "--state"], 2, ["--out"]),
    "no folder to write to": ([*FIT, "2", "--out", "no/m.svd"], 2, ["no folder", "m.svd"]),
    "out is a folder": ([*FIT, "2", "--out", "."], 2, ["folder"]),
    "out is the input": ([*FIT, "2", "--out", "a.parquet"], 2, ["a.parquet", "another name"]),
    "text columns": (["fit", "a.parquet", "--rank", "2"], 1, ["'id' (string)", "--select embedding --select age"]),
    "nulls": (["fit", "nulls.parquet", "--rank", "1"], 1, ["column 'x' has 1", "column 'y' has 1", "--nulls drop"]),
    "NaN": (["fit", "nan.parquet", "--rank", "1"], 1, ["nan.parquet", "row 1", "NaN"]),
    "damaged data": (["fit", "damaged.parquet", "--rank", "1"], 1, ["damaged.parquet", "damaged"]),
    "no rows": (["fit", "empty.parquet", "--rank", "1"], 1, ["no rows", "empty.parquet"]),
    "model missing": (["inspect", "zz.svd"], 2, ["zz.svd"]),
    "model damaged": (["inspect", "damaged.svd"], 1, ["damaged.svd", "damaged"]),
    "model is something else": (["inspect", "a.parquet"], 1, ["a.parquet"]),
    "scores with a strange suffix": (["transform", "model.svd", "a.parquet", "--out", "z.txt"], 2, ["z.txt", ".parquet"]),
    "scores without out": (["transform", "model.svd", "a.parquet"], 2, ["--out"]),
    "scores replace the input": (["transform", "model.svd", "a.parquet", "--out", "a.parquet"], 2, ["a.parquet"]),
    "rank beyond the model": (["transform", "model.svd", "a.parquet", "--rank", "4", "--out", "z.parquet"], 2, ["--rank 4"]),
    "columns of the model missing": (["transform", "model.svd", "nulls.parquet", "--out", "z.parquet"], 2, ["'embedding'"]),
    "rows of another width": (
        ["transform", "model.svd", "nan.parquet", "--select", "x", "--out", "z.parquet"], 1, ["nan.parquet", "12"],
    ),
    "merging one": (["merge", "a.svd", "--out", "ab.svd"], 2, ["two or more"]),
    "merging factors": (["merge", "model.svd", "a.svd", "--out", "ab.svd"], 2, ["model.svd", "--state"]),
    "merging what differs": (["merge", "a.svd", "narrow.svd", "--out", "ab.svd"], 1, ["narrow.svd", "columns"]),
}  # fmt: skip


@pytest.fixture
def wrong_files(folder, model):
    pq.write_table(pa.table({"x": [1.0, float("nan"), 2.0]}), folder / "nan.parquet")
    pq.write_table(pa.table({"x": pa.array([], pa.float64())}), folder / "empty.parquet")
    (folder / "damaged.parquet").write_bytes((folder / "a.parquet").read_bytes()[:900])
    damaged = bytearray(model.read_bytes())
    damaged[-5] ^= 1
    (folder / "damaged.svd").write_bytes(damaged)
    (folder / "model.txt").write_text("no model")
    ss.save(ss.sketch(columns=D, rank=3).update(rows_of(20)), folder / "a.svd")
    ss.save(ss.sketch(columns=4, rank=3).update(rows_of(20)[:, :4]), folder / "narrow.svd")
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_goes_wrong_is_one_sentence_and_changes_nothing(case, wrong_files, capsys):
    tokens, code, words = WRONG[case]
    before = {path: path.read_bytes() for path in wrong_files.iterdir()}
    capsys.readouterr()
    assert main(tokens) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("streamsvd: ")
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err
    assert {path: path.read_bytes() for path in wrong_files.iterdir()} == before


def test_debug_shows_the_traceback(capsys, monkeypatch):
    assert main(["inspect", "zz.svd", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("STREAMSVD_DEBUG", "1")
    assert main(["inspect", "zz.svd"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_named_and_fails(monkeypatch, capsys):
    monkeypatch.setattr("streamsvd.flow.checkpoint.load", lambda path: 1 / 0)
    assert main(["inspect", "a.svd"]) == 1
    said = capsys.readouterr().err
    assert "unexpected ZeroDivisionError" in said
    assert "--debug" in said


def test_rows_that_fail_late_leave_the_old_scores(model, folder, capsys):
    (folder / "z.parquet").write_bytes(b"old")
    X = rows_of(30)
    X[20, 3] = np.inf
    write(folder / "late.parquet", X)
    assert main(["transform", str(model), "a.parquet", "late.parquet", "--out", "z.parquet"]) == 1
    assert "late.parquet" in capsys.readouterr().err
    assert (folder / "z.parquet").read_bytes() == b"old"
    assert not list(folder.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_with_their_code_and_leave_nothing(model, folder, number, code):
    # Data that never comes, so that the command is certainly at work when the signal arrives.
    slow = """
import time, signal, streamsvd.flow.scores as scores
signal.signal(signal.SIGINT, signal.default_int_handler)
def endless(*_, **__):
    print("working", flush=True)
    while True:
        time.sleep(0.01)
    yield
scores.pieces = endless
"""
    start = f"{slow}\nimport sys; from streamsvd.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "transform", str(model), "a.parquet", "--out", "z.parquet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "working\n"
        time.sleep(0.05)
        running.send_signal(number)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == code
    assert said.count("\n") == 1
    assert "stopped" in said
    assert not (folder / "z.parquet").exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_traceback(model, form):
    read, wrote = os.pipe()
    os.close(read)
    start = "import sys; from streamsvd.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", start, "inspect", str(model), *form],
        stdout=wrote,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(wrote)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_installed_command_runs_without_warnings(model):
    done = process("inspect", str(model), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 700


# --- demo


@pytest.fixture
def small_photograph(monkeypatch):
    """A part of the photograph, so that the demo takes a second."""
    from streamsvd import demo

    part = demo.photograph()[100:160, 150:250]
    monkeypatch.setattr(demo, "photograph", lambda: part)
    return part


def test_the_demo_holds_its_certificate_to_the_truth(small_photograph, values, folder):
    said = values("demo", "--out", "shown")
    assert said["rows"] == 53 * 93
    assert said["holds"] is True
    assert len(said["components"]) == 8
    for part in said["components"]:
        assert 0 < part["lower"] <= part["truth"] <= part["upper"]
    assert 0 < said["true_residual"] <= said["bound"]["residual"]
    held = ss.load(said["files"]["model"])
    X = np.concatenate([np.asarray(batch) for batch in ss.batches(said["files"]["data"], select="patch")])
    assert X.shape == (53 * 93, 192)
    np.testing.assert_array_equal(X[94].reshape(8, 8, 3) * 255, small_photograph[1:9, 1:9].astype(np.float32))
    assert said["true_residual"] == pytest.approx(ss.verify.residual(X, held.vt, mean=held.mean))
    assert (folder / "shown" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in (folder / "shown").iterdir()) == [
        "china-patches.parquet",
        "demo.png",
        "demo.svd",
    ]


def test_the_demo_tells_people_and_fails_when_the_certificate_does(small_photograph, capsys, monkeypatch):
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    for words in ("8 of 8 true singular values", "rows/s", "out/demo.png", "inside", "explained"):
        assert words in said
    from streamsvd import demo

    monkeypatch.setattr(demo, "residual", lambda *_, **__: 1e9)
    assert main(["demo"]) == 1
    assert "does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["matplotlib", "sklearn"])
def test_the_demo_names_what_is_not_installed(module):
    hide = f"""
import importlib.util as util, sys
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == {module!r} else found(name, *rest)
"""
    done = process("demo", code=hide)
    assert done.returncode == 1
    assert 'pip install "streamsvd[demo]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_whole_photograph_gives_265860_patches(tmp_path):
    from streamsvd import demo

    assert demo.write_patches(tmp_path / "p.parquet") == 265_860
    assert pq.read_metadata(tmp_path / "p.parquet").num_rows == 265_860
