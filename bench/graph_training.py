"""The LightGCL table: variants at the same epochs, a tuned LightGCN and the training-free filter."""

from __future__ import annotations

from statistics import mean, median
from typing import TYPE_CHECKING, Any

import graph_peers as peers

if TYPE_CHECKING:
    import argparse

SEEDS = (0, 1, 2)


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """LightGCL and its variants at the same epochs, early stopping on the validation split; a tuned LightGCN and the filter beside."""
    train, valid, test = peers.splits()
    graph = peers.graph_of(train, 0.5)
    regular, zero = graph.factors(), peers.zeroed(graph.factors())
    published = peers.lowrank(peers.graph_of(train, 0.0), 5, seed=0).factors()
    epochs, seeds = (2, (0,)) if options.quick else (options.epochs, SEEDS)
    plain = {"propagate": "plain"}
    runs: list[tuple[str, Any, dict[str, Any], tuple[int, ...]]] = [
        ("low-rank propagation, t=.5, rank 64", regular, {}, seeds),
        ("no SVD view", None, plain, seeds),
        ("cosine contrast, t=.5, rank 32", peers.truncated(regular, 32), {**plain, "contrast": "cosine"}, (0,)),
        ("cosine contrast, zero view", peers.truncated(zero, 32), {**plain, "contrast": "cosine"}, (0,)),
        ("dot contrast, svd_lowrank(5, 2), .2", published, {**plain, "contrast": "dot", "contrast_weight": 0.2}, (0,)),
        ("factors as start, no view", regular, {**plain, "init": "factors"}, (0,)),
    ]
    if not options.quick:
        best = _tuned(train, valid, epochs)
        runs.append((f"LightGCN, tuned: {best}", None, {**plain, **best, "epochs": 2 * epochs}, seeds))
    rows = [{"model": "training-free filter, t=.5, rank 64", "seeds": 1} | peers.scores(graph, valid, test)]
    rows += [_trained(name, train, valid, test, factors, {"epochs": epochs, **o}, s) for name, factors, o, s in runs]
    return [*rows, {"model": "popularity", "seeds": 1} | peers.popular(graph, valid, test)]


def _trained(
    name: str, train: Any, valid: Any, test: Any, factors: Any, options: dict[str, Any], seeds: Any
) -> dict[str, Any]:
    from streamsvd.pipelines.graph import LightGCL
    from streamsvd.pipelines.graph.evaluate import unknown_users

    found, seconds, best = [], [], []
    for seed in seeds:
        model = LightGCL(**{"patience": 3, "seed": seed, **options})
        seconds.append(
            peers.clock(lambda model=model: model.fit(train, factors=factors, validation=valid, progress=False))[0]
        )
        scores = model.evaluate(test)
        share = scores["users"] / (scores["users"] + unknown_users(test, model))
        found.append({key: value * share for key, value in scores.items() if key != "users"})
        best.append(max(entry.get("recall@20", 0.0) for entry in model.history_))
        peers.say(f"{name}, seed {seed}: {found[-1]}")
    row: dict[str, Any] = {"model": name, "seeds": len(seeds), "valid R@20": mean(best), "s a run": median(seconds)}
    row |= {key: mean(one[key] for one in found) for key in found[0]}
    spread = [one["recall@20"] for one in found]
    return row | {"recall@20 min": min(spread), "recall@20 max": max(spread)}


def _tuned(train: Any, valid: Any, epochs: int) -> dict[str, Any]:
    """Search the learning rate of LightGCN, then at the best one its regulariser, on the validation split with seed 0."""
    from streamsvd.pipelines.graph import LightGCL

    best, found = -1.0, {}
    for key, values in (("learning_rate", (1e-3, 3e-3, 1e-2)), ("decay", (1e-6, 1e-5))):
        fixed = dict(found)
        for value in values:
            tried = {"decay": 1e-7, **fixed, key: value}
            model = LightGCL(propagate="plain", epochs=epochs, patience=3, every=2, **tried)
            history = model.fit(train, validation=valid, progress=False).history_
            recall = max(entry.get("recall@20", 0.0) for entry in history)
            peers.say(f"LightGCN, {tried}: valid {recall:.4f}")
            if recall > best:
                best, found = recall, tried
    return found
