from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from streamsvd.pipelines.ctr import apply_to, compress_tables  # noqa: E402
from streamsvd.pipelines.ctr.deepfm import DeepFM, Vocabulary  # noqa: E402
from streamsvd.pipelines.ctr.synthetic import clicks  # noqa: E402
from streamsvd.pipelines.ctr.training import auc, evaluate, logloss, train  # noqa: E402


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)
    if len(set(labels)) == 1:
        with pytest.raises(ValueError, match="labels are alike"):
            auc(labels, scores)
        return
    gaps = scores[labels == 1][:, None] - scores[labels == 0]
    assert auc(labels, scores) == pytest.approx(float(np.mean((gaps > 0) + 0.5 * (gaps == 0))))


def test_logloss_of_large_logits_is_finite() -> None:
    assert logloss(np.array([1.0, 0.0]), np.array([-2000.0, 0.0])) == pytest.approx(1000.0 + np.log(2) / 2)


def test_a_trained_model_learns_and_comes_back_from_the_disk(tmp_path) -> None:
    log = clicks(4000, {"user": 50, "item": 80}, seed=0).append_column(
        "name", pa.array([f"n{i % 7}" for i in range(4000)])
    )
    model, vocab = train(log, dim=8, epochs=6, batch=256)
    x, y = vocab.encode(log)
    assert evaluate(model, x, y)["auc"] > 0.6
    model.save(tmp_path / "m", vocab)
    back, words, _ = DeepFM.load(tmp_path / "m")
    again, _ = words.encode(log)
    assert np.array_equal(again, x)
    assert evaluate(back, x, y)["auc"] == evaluate(model, x, y)["auc"]
    counts = vocab.counts(log)
    assert all(
        np.array_equal(counts[k], np.bincount(x[:, j], minlength=vocab.sizes[k])) for j, k in enumerate(vocab.ids)
    )
    whole = apply_to(model, compress_tables(model.tables(), counts, rank=8, keep_dense=False))
    with torch.inference_mode():
        torch.testing.assert_close(whole(torch.from_numpy(x)), model(torch.from_numpy(x)), atol=1e-5, rtol=1e-4)


def test_new_ids_and_nulls_have_row_zero() -> None:
    vocab = Vocabulary.of_log(pa.table({"label": [0, 1], "item": [5, 9]}), "label")
    assert vocab.rows("item", [9, 7, None, 5]).tolist() == [2, 0, 0, 1]


def test_bad_logs_are_refused() -> None:
    with pytest.raises(ValueError, match="other values than 0 and 1, such as 2"):
        train(pa.table({"label": [0, 2], "item": [1, 1]}), epochs=1)
    vocab = Vocabulary.of_log(pa.table({"label": [0, 1], "item": [5, 9]}), "label")
    with pytest.raises(ValueError, match="lacks item"):
        vocab.encode(pa.table({"label": [0]}))


@pytest.mark.data
@pytest.mark.slow
def test_real_clicks_lose_little_at_a_third_of_the_bytes(data_dir) -> None:
    log, test = (str(data_dir / "ctr" / "frappe" / f"{name}.parquet") for name in ("train", "test"))
    model, vocab = train(log, epochs=3)
    x, y = vocab.encode(test)
    tables = model.tables()
    done = compress_tables(tables, vocab.counts(log), budget_bytes=sum(t.nbytes for t in tables.values()) // 3)
    before, after = evaluate(model, x, y), evaluate(apply_to(model, done), x, y)
    assert before["auc"] > 0.93
    assert after["auc"] > before["auc"] - 0.005
