"""LoRA-GA: adapters along the gradient of the first steps, from sketches of each layer's gradient; no (out, in) matrix is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamsvd.arrays import from_numpy, to_numpy
from streamsvd.normals import normals_like
from streamsvd.operators import svd_of_product
from streamsvd.pipelines.adapters.adapted import Adapters, LayerAdapter
from streamsvd.pipelines.adapters.corda import check_ranks
from streamsvd.pipelines.adapters.split import split, weight_of

Tensor = Any
DIRECTIONS = ("ArBr", "A2rBr", "ArB2r", "random")
SCALES = ("stable", "weight_svd", "gd_scale", "unit")


@dataclass(frozen=True, eq=False)
class GradientSketch:
    """``range_ = G T`` and ``corange = P'G`` of a sum ``G = sum dY'X`` (out, in), T (in, l) and P (out, m) random.

    A term is added without forming it: ``dY'(X T)`` and ``(dY P)'X``. Memory ``(l + m)(out + in)`` numbers, m = 2 l + 1.

    References
    ----------
    Tropp, Yurtsever, Udell and Cevher 2017 (a single pass, sketch sizes and reconstruction).
    """

    test_in: Tensor
    test_out: Tensor
    range_: Tensor
    corange: Tensor
    terms: int = 0

    @classmethod
    def start(cls, shape: tuple[int, int], rank: int, /, *, like: Tensor, seed: int = 0) -> GradientSketch:
        """Return the sketch of a zero gradient (out, in) for ``rank`` components, in float32 on the device of ``like``."""
        import torch

        out, columns = shape
        size = min(2 * rank + 8, out, columns)
        more = min(2 * size + 1, out)
        where = torch.zeros(0, dtype=torch.float32, device=like.device)
        T = normals_like(seed, columns, size, like=where, dtype="float32")
        P = normals_like(seed, out, more, like=where, dtype="float32", stream=1)
        return cls(T, P, where.new_zeros(out, size), where.new_zeros(more, columns))

    def term(self, X: Tensor, dY: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return what the gradient ``dY'X`` adds, for inputs X (tokens, in) and gradients of outputs dY (tokens, out)."""
        X, dY = X.float(), dY.float()
        return dY.T @ (X @ self.test_in), (dY @ self.test_out).T @ X

    def add(self, left: Tensor, right: Tensor, /, terms: int = 1) -> GradientSketch:
        """Return the sketch with a term added."""
        return replace(self, range_=self.range_ + left, corange=self.corange + right, terms=self.terms + terms)

    def merge(self, other: GradientSketch, /) -> GradientSketch:
        """Return the sketch of the sum of both gradients; both must have been started alike."""
        import torch

        if not (torch.equal(self.test_in, other.test_in) and torch.equal(self.test_out, other.test_out)):
            msg = "cannot merge sketches with different test matrices; start both with the same shape, rank and seed"
            raise ValueError(msg)
        return self.add(other.range_, other.corange, other.terms)

    def factors(self, rank: int, /) -> tuple[Tensor, Tensor, Tensor]:
        """Return U (out, rank), s (rank,) and V' (rank, in) of the mean gradient: ``Q (P'Q)^+ P'G`` with Q a basis of ``G T``."""
        Y, Z, P = (to_numpy(x).astype(np.float64) for x in (self.range_, self.corange, self.test_out))
        scale = float(np.abs(Y).max(initial=0.0)) or 1.0
        Q = np.linalg.qr(Y / scale)[0]
        X = np.linalg.lstsq(P.T @ Q, Z / max(self.terms, 1), rcond=None)[0]
        u, s, vt = svd_of_product(Q, np.ones(Q.shape[1]), X, rank=rank)
        return tuple(from_numpy(x, like=self.range_, dtype="float32") for x in (u, s, vt))  # type: ignore[return-value]


def lora_ga(
    model: Any,
    batches: Iterable[Any],
    rank: int,
    *,
    targets: Any = "all-linear",
    loss: Callable[[Any, Any], Tensor] | None = None,
    direction: str = "ArB2r",
    scale: str = "stable",
    gamma: float = 16.0,
    alpha: float | None = None,
    rslora: bool = False,
    seed: int = 0,
) -> Adapters:
    """Adapters whose first step is close to that of full fine-tuning (Wang, Yu and Li 2024, LoRA-GA).

    With ``G = U S V'`` the mean gradient of a layer, A takes right and B left singular vectors among the first ``2 rank`` of them, and
    ``scaling B A`` is taken out of the weight. Vectors, signs apart, scales and defaults are those of PEFT 0.21.

    Parameters
    ----------
    model : torch.nn.Module
        Gradients flow in the mode (train or eval) that it is in; no parameter gets a ``.grad``.
    batches : iterable of dict, tuple or tensor, read once
    rank : int, at most half of min(out, in) of each layer
    targets : names, regular expression, or "all-linear"
    loss : callable(model, batch) -> scalar, optional
        By default ``model(**batch).loss``; a dict without labels gets its ``input_ids`` as labels.
    direction : "ArB2r" (A: 1 .. r, B: r+1 .. 2r), "A2rBr", "ArBr" (odd and even) or "random"
    scale : "stable" (``out^(1/4) / gamma^(1/2)``), "weight_svd", "gd_scale" or "unit"
    gamma : float
    alpha : float, optional (default: the rank)
    rslora : bool
    seed : int

    Returns
    -------
    adapters : Adapters

    Raises
    ------
    ValueError
        No such targets, a rank above half of a layer's limit, no batch, unknown options, or gradients that are not finite (layer and batch
        are named; that batch changes nothing).

    Notes
    -----
    Cost beyond forward and backward: about ``6 rank (out + in)`` multiply-adds a token and layer, less than the gradients themselves.
    """
    from streamsvd.flow.activation_inputs import find_layers

    if direction not in DIRECTIONS or scale not in SCALES:
        msg = f"got direction={direction!r}, scale={scale!r}; expected one of {', '.join(DIRECTIONS)} and one of {', '.join(SCALES)}"
        raise ValueError(msg)
    names = list(find_layers(model, targets))
    check_ranks(model, names, 2 * rank, {})
    sketches = gradients(model, batches, {name: 2 * rank for name in names}, loss=loss, seed=seed)
    alpha = float(rank if alpha is None else alpha)
    scaling = alpha / (math.sqrt(rank) if rslora else rank)
    modules, layers = dict(model.named_modules()), {}
    for name in names:
        layer = modules[name]
        transposed = type(layer).__name__ == "Conv1D"
        A, B, s = _placed(sketches[name], rank, direction, seed)
        factor = _factor(layer, transposed, scale, gamma, s)
        A, B = (A / scaling, B / scaling) if scale == "gd_scale" else (A, B * factor)
        ones = s / s.clamp_min(1e-30)
        layers[name] = LayerAdapter(name, A, B, ones, scaling * B, A, scaling, "gradient", transposed)
    return Adapters(model, layers, rank, alpha, rslora, "lora-ga")


def gradients(
    model: Any,
    batches: Iterable[Any],
    ranks: Mapping[str, int],
    /,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    seed: int = 0,
) -> dict[str, GradientSketch]:
    """Return the sketch of each named layer's gradient, summed over batches; ``ranks`` says how many components each must hold."""
    modules, sketches = dict(model.named_modules()), {}
    for i, (name, rank) in enumerate(ranks.items()):
        weight = modules[name].weight
        shape = tuple(weight.shape[::-1] if type(modules[name]).__name__ == "Conv1D" else weight.shape)
        sketches[name] = GradientSketch.start(shape, rank, like=weight, seed=seed + i)
    count = 0
    for batch in batches:
        terms = _batch_terms(model, batch, sketches, loss or _own_loss)
        for name, (left, right) in terms.items():
            if not bool(left.isfinite().all() and right.isfinite().all()):
                msg = f"layer {name}, batch {count}: gradients are not finite; the batch changes nothing: check the loss and this batch"
                raise ValueError(msg)
        sketches = {n: s.add(*terms[n]) if n in terms else s for n, s in sketches.items()}
        count += 1
    if count == 0:
        msg = "got no batch; expected at least one, with labels or a loss function"
        raise ValueError(msg)
    return sketches


def _batch_terms(
    model: Any, batch: Any, sketches: Mapping[str, GradientSketch], loss: Callable[[Any, Any], Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    import torch

    terms: dict[str, tuple[Tensor, Tensor]] = {}

    def listen(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            X = inputs[0].detach()
            if not output.requires_grad:  # no parameter asks for gradients, so they start at the first layer of all
                output.requires_grad_(True)

            def back(dY: Tensor) -> None:
                found = sketches[name].term(X.reshape(-1, X.shape[-1]), dY.detach().reshape(-1, dY.shape[-1]))
                old = terms.get(name)
                terms[name] = found if old is None else (old[0] + found[0], old[1] + found[1])

            output.register_hook(back)

        return hook

    modules = dict(model.named_modules())
    with _frozen(model), torch.enable_grad():
        handles = [modules[name].register_forward_hook(listen(name)) for name in sketches]
        try:
            loss(model, batch).backward()
        finally:
            for handle in handles:
                handle.remove()
    return terms


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Switch gradients of parameters off: those of outputs are all that is needed, and no weight-sized array appears."""
    asked = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asked:
            p.requires_grad_(False)
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


def _own_loss(model: Any, batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        batch = dict(batch)
        batch.setdefault("labels", batch.get("input_ids"))
        out = model(**batch)
    else:
        out = model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
    found = getattr(out, "loss", None)
    if found is None:
        msg = f"the model returned {type(out).__name__} without a loss; give loss=lambda model, batch: ..."
        raise ValueError(msg)
    return found


def _placed(sketch: GradientSketch, rank: int, direction: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return A (rank, in), B (out, rank) with its singular values in it, and these."""
    import torch

    u, s, vt = sketch.factors(2 * rank)
    r = rank
    places = {
        "ArBr": (torch.arange(1, 2 * r, 2), torch.arange(0, 2 * r, 2)),
        "A2rBr": (torch.arange(r, 2 * r), torch.arange(r)),
        "ArB2r": (torch.arange(r), torch.arange(r, 2 * r)),
    }
    drawn = torch.randperm(2 * r, generator=torch.Generator().manual_seed(seed))[:r]
    a, b = (place.to(u.device) for place in places.get(direction, (drawn, drawn)))
    return vt[a].contiguous(), u[:, b] * s[b], s[b]


def _factor(layer: Any, transposed: bool, scale: str, gamma: float, s: Tensor) -> float:
    weight = layer.weight.detach()
    if scale == "stable":
        return weight.shape[0] ** 0.25 / math.sqrt(gamma)
    if scale == "weight_svd" and float(s[0]) > 0:
        top = split(weight_of(weight.T if transposed else weight), 1, tol=1e-4).s
        return float(top[0]) / float(s[0])
    return 1.0
