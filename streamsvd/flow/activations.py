"""Second moments of what flows into the linear layers of a torch model: forward hooks that feed one sketch for each distinct input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from streamsvd.flow.activation_groups import asked, regrouped
from streamsvd.flow.activation_inputs import Seen, call, combined_mask, find_layers, fingerprint, unneeded
from streamsvd.flow.activation_plan import LayerPlan, MemoryPlan, choose, layer_plan
from streamsvd.flow.packed import Packed
from streamsvd.truncated import Truncated

if TYPE_CHECKING:
    import os

    from streamsvd.gram import Gram

Tensor = Any
Held = Any  # Packed or Truncated


class ActivationStats:
    """Sketches of the inputs of linear layers, filled while the model runs.

    Forward pre-hooks note the input of each target; when the model's forward has come to its end, the rows (tokens, d) that the masks
    leave are folded. So a batch counts for every layer or, where it is refused or the forward fails, for none. Layers that read the same
    tensor (q, k, v; gate, up) share one sketch, as long as they do so in every forward. Hooks of others are left alone.

    Parameters
    ----------
    model : torch.nn.Module
    targets : str or names
        Module names or their ends ("q_proj"), one regular expression, or "all-linear" (without the output embedding).
    sketch : {"auto", "gram", "truncated"}
        Exact second moments (float64 packed triangles, 4 d^2 bytes), merge-and-truncate (4 d numbers for each of ``kept``), or for each
        layer exact moments where they fit (see ``memory``). Decided when the first batch has shown which layers share their input.
    rank, kept : int
        Components k that factors report (16 by default, at most d), and rows that a truncated sketch keeps (``max(2 k, k + 10)``).
    center : bool
        Subtract the mean (principal components) or not.
    rows : int, optional
        Cap: batches after so many rows (of the layer that saw most) leave the statistics as they are; ``full`` is then true.
    memory : int, optional
        Bytes that all sketches may take; "auto" gives up exact moments of the widest layers first. 2 GiB by default.
    dtype : {"float32", "float64"}
        Precision of the products (sums of exact moments are float64 in either case). Half precision is widened.
    normalise : {None, "peft"}
        "peft" divides the rows of each call by ``|max x|``, as PEFT 0.21 does for CorDA.
    seed : int
    on_plan : callable, optional
        Gets the plan when the first batch has shown which layers share their input, before anything is allocated.

    Attributes
    ----------
    layers : tuple of str, targets in the model's order
    groups : dict, layer to the layer whose sketch it shares (itself where it has its own); layers not reached are absent
    unreached : tuple of str, targets that no batch has reached so far (experts of a mixture)
    unmasked : set of str, layers whose input has another shape than the mask, so that all their rows counted
    batches, forwards : int, batches that counted, and all that ran
    calls : dict, how often each layer was called

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    >>> with ActivationStats(model, ["0", "1"], rank=2) as stats:
    ...     out = model(torch.ones(3, 5, 8))
    >>> stats.sketch("0").rows, stats.groups, stats.unreached
    (15, {'0': '0', '1': '1'}, ())
    """

    def __init__(
        self,
        model: Any,
        targets: str | Iterable[str],
        *,
        sketch: Literal["gram", "truncated", "auto"] = "auto",
        rank: int | None = None,
        kept: int | None = None,
        center: bool = False,
        rows: int | None = None,
        memory: int | None = None,
        dtype: Any = None,
        normalise: str | None = None,
        seed: int = 0,
        on_plan: Callable[[MemoryPlan], None] | None = None,
    ) -> None:
        self.model, self.widths = model, find_layers(model, targets)
        self.asked = asked(sketch, rank, kept, center, dtype, normalise, seed)
        for name, width in self.widths.items():
            if rank is not None and rank > width:
                msg = f"rank={rank} is above the limit of layer {name!r}, which has {width} inputs; give rank={width} or less"
                raise ValueError(msg)
        self.cap, self.memory, self.on_plan = rows, memory, on_plan
        self.fingerprint = fingerprint(model, self.widths)
        self.groups: dict[str, str] = {}
        self.unmasked: set[str] = set()
        self.batches = self.forwards = 0
        self.calls: dict[str, int] = dict.fromkeys(self.widths, 0)
        self.kinds: dict[str, str] = {}
        self._states: dict[str, Held] = {}
        self._seen: dict[str, list[Seen]] = {}
        self._mask: Tensor | None = None
        self._handles: list[Any] = []

    @property
    def layers(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self.widths)

    @property
    def unreached(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(name for name in self.widths if name not in self.groups)

    @property
    def full(self) -> bool:
        """Whether the cap on rows is reached."""
        return self.cap is not None and max((self.rows(name) for name in self.groups), default=0) >= self.cap

    def __enter__(self) -> Self:
        """Put the hooks on the model."""
        if self._handles:
            msg = "these statistics are being taken already; leave the first `with` before the next"
            raise RuntimeError(msg)
        modules = dict(self.model.named_modules())
        try:
            self._handles.append(self.model.register_forward_pre_hook(self._begin, prepend=True))
            for name in self.widths:
                self._handles.append(modules[name].register_forward_pre_hook(self._reader(name), with_kwargs=True))
            self._handles.append(self.model.register_forward_hook(self._end))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks off; a forward that has not come to its end does not count."""
        self._remove()

    def masks(self, attention_mask: Any = None, labels: Any = None, label_mask_value: int = -100) -> None:
        """Say which tokens of the next forward count: those attended to and, if labels are given, those with a label.

        Parameters
        ----------
        attention_mask, labels : tensor (batch, tokens), optional
        label_mask_value : int
        """
        self._mask = combined_mask(attention_mask, labels, label_mask_value)

    def forward(
        self, batch: Any, /, *, use_labels: bool = False, label_mask_value: int = -100, logits: bool = True
    ) -> Any:
        """Run the model on a batch (dict, tuple or tensor) without gradients, with the masks that a dict carries.

        ``logits=False`` leaves out what no target reads, where a Hugging Face model can: the logits of all tokens but the last, and the
        cache of keys and values. A dict with labels runs as it is.

        Raises
        ------
        ValueError
            Activations that are not finite; the message names layer and batch, and the batch changes nothing.
        """
        import torch

        mapping = batch if isinstance(batch, Mapping) else {}
        labels = mapping.get("labels") if use_labels else None
        self.masks(mapping.get("attention_mask"), labels, label_mask_value)
        with torch.no_grad():
            extra = {} if logits or not mapping else unneeded(self.model, mapping, self.widths)
            return call(self.model, {**mapping, **extra} if extra else batch)

    def rows(self, name: str, /) -> int:
        """Return how many rows the sketch of a layer has seen."""
        leader = self.groups.get(name)
        if leader is None or leader not in self._states:
            return 0
        state = self._states[leader]
        return state.rows + (state.count if isinstance(state, Packed) else 0)

    def sketch(self, name: str, /) -> Gram | Truncated:
        """Return the sketch of a layer, rows that wait included (exact moments as a square of 8 d^2 bytes, made at each call).

        Raises
        ------
        KeyError
            No target of this name, or one that no batch has reached; the message says which.
        """
        state = self._states[self.leader(name)]
        return state.gram() if isinstance(state, Packed) else state

    def state_of(self, name: str, /) -> Held:
        """Return the sketch of a layer as it is held: ``Packed`` or ``Truncated``. It is the one that later batches go into."""
        return self._states[self.leader(name)]

    def leader(self, name: str, /) -> str:
        """Return the layer whose sketch a layer shares; KeyError for one without a sketch."""
        if name not in self.widths:
            msg = f"{name!r} is no target; targets are {', '.join(self.layers[:8])}{' ...' if len(self.widths) > 8 else ''}"
            raise KeyError(msg)
        if name not in self.groups:
            msg = f"no batch has reached the layer {name!r} (see .unreached), so it has no sketch"
            raise KeyError(msg)
        return self.groups[name]

    def plan(self) -> MemoryPlan:
        """Return the bytes of each sketch: kept between batches (state, buffer), and needed while it works.

        Before the first batch, no input counts as shared, so the plan is an upper bound.
        """
        if self.groups:
            return self._planned(self.groups, self.kinds)
        alone = {name: name for name in self.widths}
        return replace(self._planned(alone, self._chosen(list(alone))), grouped=False)

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write the statistics to a file, from which ``load`` goes on with the same bits."""
        from streamsvd.flow.activation_files import write

        write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any, /, **options: Any) -> ActivationStats:
        """Read statistics for the model they were taken of; ``options``: rows, memory.

        Raises
        ------
        ValueError
            The file is damaged, or its statistics are of another model.
        """
        from streamsvd.flow.activation_files import read

        return read(cls, path, model, options)

    def merge(self, other: ActivationStats, /) -> ActivationStats:
        """Return the statistics of both together, for the model of this one; layers share where they share in both.

        Raises
        ------
        ValueError
            Another model, other targets, or other options.
        """
        from streamsvd.flow.activation_files import merged

        return merged(self, other)

    def merge_across_ranks(self, group: Any = None, /) -> ActivationStats:
        """Return the statistics of all processes of a ``torch.distributed`` group together: the same bits in each of them.

        Cost: every process sends its sketches once; no activations travel.
        """
        from streamsvd.flow.activation_ranks import gathered

        return gathered(self, group)

    def _begin(self, _module: Any, _inputs: Any) -> None:
        self._seen.clear()

    def _reader(self, name: str) -> Any:
        def read(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = inputs[0] if inputs else named.get("input", named.get("x"))
            if x is not None and hasattr(x, "data_ptr") and not self.full:
                self._seen.setdefault(name, []).append(Seen.of(x))

        return read

    def _end(self, _module: Any, _inputs: Any, _output: Any) -> None:
        seen, mask = self._seen, self._mask
        self._seen, self._mask = {}, None
        self.forwards += 1
        if seen:
            self._count(seen, mask)

    def _count(self, seen: dict[str, list[Seen]], mask: Tensor | None) -> None:
        """Fold the inputs of one forward, or refuse them all."""
        from streamsvd.flow.activation_rows import folded, prepared

        keys = {name: tuple(one.key for one in inputs) for name, inputs in seen.items()}
        groups, clones = regrouped(self.groups, keys, self.widths)
        leaders: dict[str, str] = {}
        for name in seen:  # in the order of the forward, so that the first layer that holds NaN is the one named
            leaders.setdefault(groups[name], name)
        ready, unmasked = prepared(self, {lead: seen[name] for lead, name in leaders.items()}, mask)
        first = [lead for lead in dict.fromkeys(groups.values()) if lead not in self.kinds and lead not in clones]
        kinds = self._chosen(first) if first else {}
        kinds |= {lead: self.kinds[old] for lead, old in clones.items()}
        if first and self.on_plan is not None:
            self.on_plan(self._planned(groups, self.kinds | kinds))
        if any(rows and rows[0].device.type == "meta" for rows in ready.values()):
            self.groups, self.kinds = groups, self.kinds | kinds
            return
        new = folded(self, ready, clones, self.kinds | kinds)
        self.kinds |= kinds
        self._states.update(new)
        self.groups, self.batches = groups, self.batches + 1
        self.unmasked |= {name for name in seen if groups[name] in unmasked}
        for name in seen:
            self.calls[name] += len(seen[name])

    def _chosen(self, leaders: list[str]) -> dict[str, str]:
        """Decide between exact and truncated moments for layers that have no sketch yet."""
        held = sum(self._line(name, kind, ()).kept_bytes for name, kind in self.kinds.items())
        lines = {
            kind: {name: self._line(name, kind, ()).kept_bytes for name in leaders} for kind in ("gram", "truncated")
        }
        return choose(self.asked.sketch, lines, self.memory, held)

    def _planned(self, groups: dict[str, str], kinds: dict[str, str]) -> MemoryPlan:
        members: dict[str, list[str]] = {}
        for name, lead in groups.items():
            members.setdefault(lead, []).append(name)
        return MemoryPlan(tuple(self._line(lead, kinds[lead], tuple(names)) for lead, names in members.items()))

    def _line(self, name: str, kind: str, shared: tuple[str, ...]) -> LayerPlan:
        return layer_plan(name, kind, self.asked.options(self.widths[name]), shared)

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._seen = {}
