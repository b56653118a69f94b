"""How an estimate is made, as one frozen dataclass: the options of `KronSBL`, and those of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

METHODS = ("svd", "am", "classical", "pc", "decomposed")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `KronSBL` under the same names and with the same defaults."""

    method: Literal["svd", "am", "classical", "pc", "decomposed"] = "svd"
    """Rank-one approximation, alternating minimization, one hyperparameter for each unknown, blocks, or factor by factor."""
    noise: Literal["known", "estimate"] = "known"
    """Whether the noise variance is given or estimated."""
    prune: float | tuple[float, ...] | None = None
    """Switch off hyperparameters below this share of the largest of their factor; by default those lost in the noise."""
    significance: float = 15.0
    """What "lost in the noise" means: the prior energy of the largest coefficient is below so many noise variances."""
    tol: float = 1e-4
    """Stop where the hyperparameters change by less than this share."""
    max_iter: int = 150
    """Stop after so many iterations, with converged = False."""
    floor: float = 1e-3
    """A warm start raises all hyperparameters to this share of the largest, so that new paths can appear."""
    coupling: float | tuple[float, ...] = 0.8
    """Method pc: what neighbours in the grid share, for each factor or for all."""
    bound: Literal["convex", "em"] = "convex"
    """Method am: the fast convex bound, or EM as published."""
    rank_one: Literal["svd", "power"] = "svd"
    """Method svd: one unfolding after the other as published, or warm-started power iteration (cheaper for many frames)."""
    unidentifiable: Literal["error", "warn"] = "error"
    """What zero or parallel dictionary columns do."""
    dtype: Literal["float32", "float64", "complex64", "complex128"] | None = None
    """Of the mean; that of y by default."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _choice("method", self.method, METHODS)
        _choice("noise", self.noise, ("known", "estimate"))
        _choice("bound", self.bound, ("convex", "em", "sweep"))
        _choice("rank_one", self.rank_one, ("svd", "power"))
        _choice("unidentifiable", self.unidentifiable, ("error", "warn"))
        _choice("dtype", self.dtype, (None, "float32", "float64", "complex64", "complex128"))
        for value in _values(self.prune):
            _within(
                "prune",
                value,
                0 <= value < 1,
                "0 <= prune < 1, a share of the largest hyperparameter, for example prune=1e-3",
            )
        for value in _values(self.coupling):
            _within("coupling", value, 0 <= value <= 1, "0 <= coupling <= 1, for example coupling=0.8")
        _within(
            "floor",
            self.floor,
            0 < self.floor < 1,
            "0 < floor < 1, because what is 0 never comes back; write floor=1e-3",
        )
        _within("tol", self.tol, self.tol >= 0, "tol >= 0, for example tol=1e-4")
        _within("max_iter", self.max_iter, self.max_iter >= 1, "max_iter >= 1, for example max_iter=150")
        _within("significance", self.significance, self.significance >= 0, "significance >= 0; 0 prunes nothing")

    @property
    def step(self) -> str:
        """Name of the M-step."""
        if self.method == "svd":
            return self.rank_one
        return {"convex": self.method, "em": "em", "sweep": "sweep"}[self.bound] if self.method == "am" else self.method

    def prunes(self, modes: int) -> tuple[float, ...]:
        """Return ``prune`` for each mode."""
        return _each("prune", self.prune if self.prune is not None else 0.0, modes)

    def couplings(self, modes: int) -> tuple[float, ...]:
        """Return ``coupling`` for each mode."""
        return _each("coupling", self.coupling, modes)


def _values(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return () if value is None else tuple(value) if isinstance(value, tuple | list) else (value,)


def _each(name: str, value: float | tuple[float, ...], modes: int) -> tuple[float, ...]:
    values = _values(value)
    values = values * modes if len(values) == 1 else values
    if len(values) != modes:
        msg = f"{name} has {len(values)} entries and there are {modes} dictionaries; give one number, or one for each dictionary"
        raise ValueError(msg)
    return values


def _choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        msg = f"{name}={value!r} is not known; expected one of {', '.join(map(repr, known))}"
        raise ValueError(msg)


def _within(name: str, value: float, good: bool, expected: str) -> None:
    if not good:
        msg = f"{name}={value} is out of range; expected {expected}"
        raise ValueError(msg)
