"""``streamsvd adapter``: from a model's folder and a file of text to a folder that PEFT loads."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from streamsvd.launch import run  # noqa: E402
from streamsvd.pipelines.adapters.cli import app  # noqa: E402
from streamsvd.pipelines.adapters.text import batches, records  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=97, max_position_embeddings=64, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    with (folder / "ids.jsonl").open("w") as file:
        for i in range(60):
            file.write(json.dumps({"input_ids": [(i * j * j + j) % 97 for j in range(1, 40)], "label": i}) + "\n")
    return folder


def load(place, out, base=None):
    kind = transformers.AutoModelForCausalLM
    return peft.PeftModel.from_pretrained(kind.from_pretrained(base or place / "model"), out)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None]).logits


def test_eva_writes_a_folder_a_picture_and_statistics(place, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    common = ["--model", str(place / "model"), "--out", str(tmp_path / "out"), "--rank", "3"]
    text = ["--data", str(place / "ids.jsonl"), "--targets", "q_proj,down_proj"]
    extra = ["--picture", str(tmp_path / "eva.png"), "--stats", str(tmp_path / "stats.svd")]
    assert run(app, ["eva", *common, *text, *extra]) == 0
    shown = capsys.readouterr().out
    assert "kept between batches" in shown
    assert "model.layers.0.mlp.down_proj" in shown
    assert (tmp_path / "eva.png").stat().st_size > 5000
    assert (tmp_path / "stats.svd").exists()
    model = load(place, tmp_path / "out")
    assert torch.equal(logits(model), logits(transformers.AutoModelForCausalLM.from_pretrained(place / "model")))
    assert run(app, ["eva", *common, *text, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert sum(row["rank"] for row in told["layers"]) == 6


@pytest.mark.parametrize("method", ["corda", "pissa"])
@pytest.mark.parametrize("original", [False, True])
def test_adapters_that_change_the_weights_compute_what_the_model_did(place, tmp_path, capsys, method, original):
    out = tmp_path / "out"
    command = [method, "--model", str(place / "model"), "--out", str(out), "--rank", "3", *(["--original"] * original)]
    command += ["--data", str(place / "ids.jsonl")] if method == "corda" else []
    assert run(app, command) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    model = load(place, out, None if original else out / "residual")
    truth = logits(transformers.AutoModelForCausalLM.from_pretrained(place / "model"))
    assert (logits(model) - truth).norm() <= 1e-5 * truth.norm()


def test_what_was_written_wrongly_is_said_in_a_sentence(place, tmp_path, capsys):
    ids, out = str(place / "ids.jsonl"), str(tmp_path / "out")
    common = ["--model", str(place / "model"), "--out", out]
    for command, message in (
        (["eva", *common, "--data", ids, "--column", "words"], "there are input_ids, label: name one with --column"),
        (["eva", *common, "--data", str(tmp_path / "no.jsonl")], "there is no file"),
        (["eva", *common, "--data", ids, "--targets", "query"], "it has q_proj (1)"),
        (["pissa", "--model", str(tmp_path), "--out", out], "holds no config.json"),
        (["pissa", *common, "--rank", "33"], "1 .. 32"),
    ):
        assert run(app, command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_texts_come_from_json_lines_and_parquet_alike(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [[1, 2, 3], None, [4], list(range(9))]
    pq.write_table(pa.table({"input_ids": rows, "x": range(4)}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"input_ids": row}) for row in rows) + "\n\n")
    for suffix in ("parquet", "jsonl"):
        path = str(tmp_path / f"a.{suffix}")
        assert list(records(path, None)) == [[1, 2, 3], [4], list(range(9))]
        first, second = batches([path], None, column="input_ids", length=5, size=2, samples=None)
        assert first["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
        assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert second["input_ids"].tolist() == [[0, 1, 2, 3, 4]]
        assert len(list(batches([path], None, column=None, length=5, size=2, samples=1))) == 1
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(ValueError, match="line 2: a list"):
        list(records(str(tmp_path / "b.jsonl"), None))
    with pytest.raises(ValueError, match="neither Parquet"):
        list(records("a.txt", None))
    with pytest.raises(ValueError, match="no tokenizer"):
        list(batches([str(tmp_path / "b.jsonl")], None, column="text", length=5, size=2, samples=None))
