"""How a graph is factored and how a model is trained: each one frozen dataclass, which the Python call and the command line share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from cyclopts import Parameter

DUPLICATES = ("error", "sum", "max", "ignore")
NORMALISE = ("sym", "raw")
COMPONENTS = ("auto", "giant", "deflate", "all")
GRID = (0.0, 0.25, 0.5, 1.0)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How a bipartite graph is factored; the options of `GraphSVD` under the same names and with the same defaults."""

    rank: int = 64
    """Components to deliver."""
    regularise: float | Literal["auto"] = "auto"
    """t: t x mean degree is added to the degrees of each side; auto chooses from 0, 0.25, 0.5, 1."""
    normalise: Literal["sym", "raw"] = "sym"
    """Divide each edge by the roots of its two degrees (sym), or take the weights as they are (raw)."""
    components: Literal["auto", "giant", "deflate", "all"] = "auto"
    """Largest connected component only (giant), trivial vectors taken out (deflate), all; auto: all with t > 0, else giant."""
    duplicates: Literal["error", "sum", "max", "ignore"] = "error"
    """What an edge that is there already does."""
    energy: float = 0.99
    """Share of the energy of the best factors that a refresh aims at."""
    passes: int | None = None
    """Passes over the edges of a refresh; by default as many as its energy needs."""
    seed: int = 0
    """Of the random start."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        _at_least("rank", self.rank, 1, "rank=64")
        if self.passes is not None:
            _at_least("passes", self.passes, 1, "passes=1, or leave it out")
        _one_of("normalise", self.normalise, NORMALISE)
        _one_of("components", self.components, COMPONENTS)
        _one_of("duplicates", self.duplicates, DUPLICATES)
        if not 0.0 < self.energy < 1.0:
            msg = f"energy={self.energy} is not a share; expected 0 < energy < 1, for example energy=0.99"
            raise ValueError(msg)
        t = self.regularise
        if t != "auto" and not (isinstance(t, int | float) and 0.0 <= t < float("inf")):
            msg = f"regularise={t!r}; expected 'auto' or a number of at least 0, for example regularise=0.5"
            raise ValueError(msg)
        if self.normalise == "raw" and t not in ("auto", 0):
            msg = f"regularise={t} adds to degrees that normalise='raw' does not use; leave one of the two out"
            raise ValueError(msg)

    def difference(self, other: GraphSettings) -> list[str]:
        """Return the options in which another one differs, as sentences."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)]
        return [f"{name}={theirs!r} there, {name}={ours!r} here" for name, ours, theirs in pairs if ours != theirs]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a LightGCL model is trained; the options of `LightGCL` under the same names and with the same defaults."""

    width: int = 32
    """Numbers in each embedding."""
    layers: int = 2
    """Propagation steps."""
    propagate: Literal["lowrank", "plain"] = "lowrank"
    """Add the factors' U V' to the graph in the propagation, or take the graph alone."""
    init: Literal["random", "factors"] = "random"
    """Start of the embeddings."""
    contrast: Literal["off", "cosine", "dot"] = "off"
    """Contrastive term between the graph and the factors' view of it (dot: as published)."""
    contrast_weight: float = 0.1
    """Its weight in the loss."""
    temperature: float = 0.2
    """Its temperature."""
    anchors: int = 512
    """Nodes of a batch that are contrasted."""
    nodes: int | None = 2048
    """Nodes they are contrasted with; 0 stands for all (minutes an epoch)."""
    decay: float = 1e-7
    """Weight of the squared embeddings in the loss."""
    dropout: float = 0.0
    """Share of the edges left out of each step."""
    learning_rate: float = 3e-3
    """Of Adam."""
    batch: int = 4096
    """Edges in a step."""
    epochs: int = 20
    """At most so many passes over the edges."""
    patience: int = 3
    """Stop after so many evaluations without a better one."""
    every: int = 1
    """Epochs between evaluations."""
    seed: int = 0
    """Of the start, the order of the edges and the negative items."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("width", "layers", "anchors", "batch", "epochs", "patience", "every"):
            _at_least(name, getattr(self, name), 1, f"{name}={getattr(TrainSettings, name)}")
        _one_of("propagate", self.propagate, ("lowrank", "plain"))
        _one_of("init", self.init, ("random", "factors"))
        _one_of("contrast", self.contrast, ("off", "cosine", "dot"))
        if not 0.0 <= self.dropout < 1.0:
            msg = f"dropout={self.dropout} is not a share; expected 0 <= dropout < 1, for example dropout=0.1"
            raise ValueError(msg)
        if self.temperature <= 0 or self.learning_rate <= 0:
            msg = f"temperature={self.temperature}, learning_rate={self.learning_rate}; both must be above 0"
            raise ValueError(msg)


def _at_least(name: str, value: Any, least: int, cure: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        msg = f"{name}={value!r}; expected an integer of at least {least}, for example {cure}"
        raise ValueError(msg)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        msg = f"{name}={value!r} is not known; write one of {', '.join(map(repr, known))}"
        raise ValueError(msg)
