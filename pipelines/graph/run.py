"""A training run of LightGCL: the embeddings, the graph and its factors, the loss of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamsvd.operators import Csr
from streamsvd.pipelines.graph import lightgcl as net
from streamsvd.pipelines.graph import model
from streamsvd.pipelines.graph.sampling import Sampler

if TYPE_CHECKING:
    from streamsvd.pipelines.graph.factors import GraphFactors
    from streamsvd.pipelines.graph.settings import TrainSettings
    from streamsvd.pipelines.graph.store import EdgeStore

torch = net.torch


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cure = f"device='cpu' or, where torch.cuda.is_available(), which is {torch.cuda.is_available()} here, device='cuda'"
        msg = f"device={name!r} cannot be used by torch here; write {cure}"
        raise ValueError(msg) from error


class Run:
    """What a training run holds: embeddings, graph, factors, sampler and optimiser."""

    def __init__(self, store: EdgeStore, factors: GraphFactors | None, settings: TrainSettings, device: str) -> None:
        self.settings, self.device, self.store = settings, _device(device), store
        self.scale = model.scaling(store, 0.0)
        self.whole = self._operator(None)
        self.factors = None
        if factors is not None:
            parts = (factors.u, factors.v, factors.u_mul_s, factors.v_mul_s)
            self.factors = net.Factored(*(torch.tensor(np.ascontiguousarray(x), device=self.device) for x in parts))
        self.parameters = self._start(factors)
        self.optimiser = torch.optim.Adam(self.parameters, lr=settings.learning_rate)
        self.sampler = Sampler(store, settings.seed)

    def views(self, *, training: bool) -> net.Views:
        """Propagate the embeddings as they are."""
        s = self.settings
        op = self._operator(self.sampler.rng) if training and s.dropout > 0 else self.whole
        options = {
            "layers": s.layers,
            "lowrank": s.propagate == "lowrank",
            "contrast": training and s.contrast != "off",
        }
        return net.forward(self.parameters[0], self.parameters[1], op, self.factors, **options)

    def embeddings(self) -> tuple[Any, Any]:
        """Return what ranks: the propagated embeddings, without gradients."""
        with torch.no_grad():
            found = self.views(training=False)
        return found.users, found.items

    def loss(self, u: np.ndarray, p: np.ndarray, n: np.ndarray) -> Any:
        """Return the loss of a batch of edges (u, p) and negative items n."""
        s, views = self.settings, self.views(training=True)
        users, positive, negative = (torch.from_numpy(x).to(self.device) for x in (u, p, n))
        total = net.bpr(views.users[users], views.items[positive], views.items[negative])
        total = total + s.decay * sum(x.square().sum() for x in self.parameters)
        if s.contrast == "off":
            return total
        views_of = ((views.users_view, views.users, u), (views.items_view, views.items, np.concatenate([p, n])))
        for view, main, rows in views_of:
            assert view is not None
            drawn, others = self.sampler.contrasted(rows, main.shape[0], s.anchors, s.nodes or None)
            anchors = torch.from_numpy(drawn).to(self.device)
            nodes = None if others is None else torch.from_numpy(others).to(self.device)
            part = net.contrast_loss(view, main, nodes, anchors=anchors, temperature=s.temperature, kind=s.contrast)
            total = total + s.contrast_weight * part
        return total

    def _operator(self, rng: np.random.Generator | None) -> Any:
        """Return the normalised graph, with edges left out where a generator draws them."""
        A = self.store.matrix()
        if rng is not None:
            A, keep = A.copy(), 1.0 - self.settings.dropout
            A.data = A.data * (rng.random(A.data.size) < keep).astype(np.float32) / np.float32(keep)
        left, right = self.scale.left.astype(np.float32), self.scale.right.astype(np.float32)
        if self.device.type == "cpu":
            return Csr(A, left, right)
        return net.OnDevice(A.multiply(left[:, None]).multiply(right[None, :]), self.device)

    def _start(self, factors: GraphFactors | None) -> list[Any]:
        """Return the embeddings before training: uniform (Glorot and Bengio 2010), or those whose products are the filter's scores."""
        d, shape = self.settings.width, self.store.shape
        if self.settings.init == "factors" and factors is not None:
            start = [_fitted(x, d) for x in _preferences(self.store, factors)]
        else:
            rng = np.random.default_rng([self.settings.seed, d])
            limits = [np.sqrt(6.0 / (rows + d)) for rows in shape]
            start = [rng.uniform(-a, a, (rows, d)).astype(np.float32) for a, rows in zip(limits, shape, strict=True)]
        return [torch.tensor(x, device=self.device, requires_grad=True) for x in start]


def _preferences(store: EdgeStore, factors: GraphFactors) -> tuple[np.ndarray, np.ndarray]:
    scale, turned = factors.item_scale, factors.v @ factors.rotation.T.astype(np.float32)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return store.matrix() @ (turned * inverse[:, None]), turned * scale[:, None]


def _fitted(x: np.ndarray, width: int) -> np.ndarray:
    """Return the leading columns at a root mean square of 0.1, with zeros where there are fewer."""
    out = np.zeros((x.shape[0], width), np.float32)
    out[:, : min(width, x.shape[1])] = x[:, :width]
    return out * np.float32(0.1 / max(float(np.sqrt(np.mean(np.square(out)))), 1e-30))
