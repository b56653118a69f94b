"""A trained click model with its embedding tables a quarter of the size: compressed by how often each id is looked up, and fine-tuned.

python examples/08_compress_embeddings.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from streamsvd.pipelines.ctr import apply_to, compress_tables, mimic, refresh
from streamsvd.pipelines.ctr.judging import compare, curve, table, write_page
from streamsvd.pipelines.ctr.synthetic import clicks
from streamsvd.pipelines.ctr.training import evaluate, shuffled, train

QUICK = "--quick" in sys.argv
USERS, ITEMS = (300, 800) if QUICK else (4000, 9000)
VOCABULARY = {"user": USERS, "item": ITEMS, "category": 60, "hour": 24}
ROWS, EPOCHS = (6_000, 3) if QUICK else (150_000, 4)

with tempfile.TemporaryDirectory() as name:
    log, later = Path(name) / "train.parquet", clicks(ROWS // 3, VOCABULARY, seed=2)
    pq.write_table(clicks(ROWS, VOCABULARY, seed=0), log)
    model, vocab = train(log, dim=16, epochs=EPOCHS, batch=1024)
    counts, train_rows = vocab.counts(log), vocab.encode(log)
test_rows = vocab.encode(clicks(ROWS // 3, VOCABULARY, seed=1))

# After training, and without it: the counts and the tables are all that is needed.
tables = model.tables()
budget = sum(one.nbytes for one in tables.values()) // 4
result = compress_tables(tables, counts, budget_bytes=budget)
print(table(result))

scores = compare(model, result, *test_rows)
small = apply_to(model, result)
mimic(model, small, shuffled(*train_rows, 1024, 0))
scores["after fine-tuning"] = {**evaluate(small, *test_rows), "bytes": result.bytes_after}
print(f"\n{'':<20}{'AUC':>8}{'logloss':>9}{'bytes':>12}")
for which, found in scores.items():
    print(f"{which:<20}{found['auc']:>8.4f}{found['logloss']:>9.4f}{found['bytes']:>12,.0f}")

# The next day's look-ups join the state; a new basis comes only where the old one no longer serves them.
fresh = refresh(result, tables, vocab.counts(later), max_angle=90.0)
lost = max(move.lost for move in fresh.moves.values())
print(
    f"\nafter {later.num_rows:,} more clicks the old bases lose {lost:.2%}: {'new ones' if fresh.renewed else 'they stay'}\n"
)

points = curve(model, counts, *test_rows)
low, high = min(p["auc"] for p in points), max(p["auc"] for p in points)
print(f"{'bytes':>12}  {'error':>7}  AUC")
for point in points:
    bar = "#" * round(40 * (point["auc"] - low) / max(high - low, 1e-9))
    print(f"{point['bytes']:>12,.0f}  {point['error']:>7.4f}  {point['auc']:.4f} {bar}")
page = Path(tempfile.gettempdir()) / "compressed_embeddings.html"
write_page(page, result, points=points, scores={k: scores[k] for k in ("before", "after")})
print(f"\nthe curve as a picture: {page}")
