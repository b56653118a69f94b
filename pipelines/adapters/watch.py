"""When a layer's components have settled: subspaces from half the rows, judged by all of them."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from streamsvd.pipelines.adapters.components import Components, components

# The first reading comes after as many rows as columns, of which wide inputs are not made to wait for all.
FIRST_ROWS, LATEST_FIRST = 512, 2048


class Watch:
    """Reads the sketches each time the rows have doubled, and says when every layer is done.

    A layer's stability is ``|A V_half'|^2 / |A V_all'|^2``: the energy that the components from at most half of the rows capture of all
    rows, as a share of the best. It compares subspaces, so ties and signs do not matter, and the components that are handed over come from
    all rows and are better than those judged (the estimate does not say how rows that are still to come differ from these).

    Parameters
    ----------
    stats : ActivationStats
    cap : int, candidates of a layer
    stop : float or None
    seed : int
    """

    def __init__(self, stats: Any, cap: int, stop: float | None, seed: int) -> None:
        self.stats, self.cap, self.stop, self.seed = stats, cap, stop, seed
        self.stability: dict[str, float] = {}
        self.reads: dict[str, Components] = {}
        self.last: dict[str, Components] = {}
        self.due: dict[str, int] = {}
        self.began, self.bar = time.perf_counter(), None

    def advance(self, shown: bool) -> bool:
        """Look at the sketches that are due; true when every layer that was reached is done (and all were reached)."""
        if self.stop is not None:
            for lead in dict.fromkeys(self.stats.groups.values()):
                first = max(FIRST_ROWS, 4 * self.cap, min(self.stats.widths[lead], LATEST_FIRST))
                if self.stats.rows(lead) >= self.due.setdefault(lead, first):
                    self._read(lead)
        if shown:
            self._show()
        leads = set(self.stats.groups.values())
        return bool(leads) and self.stop is not None and all(self._done(lead) for lead in leads)

    def final(self) -> dict[str, Components]:
        """Return the components of every sketch from all rows, and bring the stabilities up to date."""
        out = {}
        for lead in dict.fromkeys(self.stats.groups.values()):
            self._read(lead, final=True)
            out[lead] = self.last.pop(lead)
        return out

    @property
    def kept_bytes(self) -> int:
        """What the components from half of the rows take, if every input has them."""
        leads = set(self.stats.groups.values())
        return 0 if self.stop is None else sum(4 * min(self.cap, d) * d for d in map(self.stats.widths.get, leads) if d)

    def close(self) -> None:
        """End the line of progress."""
        if self.bar is not None:
            print(file=sys.stderr)

    def _done(self, lead: str) -> bool:
        return self.stop is not None and self.stability.get(lead, 0.0) >= self.stop

    def _read(self, lead: str, final: bool = False) -> None:
        state, k = self.stats.state_of(lead), min(self.cap, self.stats.widths[lead])
        before = self.reads.get(lead)
        now = components(state, k, before=before, seed=self.seed)
        if before is None or before.rows <= 0.5 * now.rows:
            if now.held is not None:
                best = float(now.power.sum())
                self.stability[lead] = min(1.0, now.held / best) if best > 0 else 1.0
            # In single precision, which is enough to judge by, and half as much to keep until the rows have doubled.
            self.reads[lead] = replace(now, vt=now.vt.astype(np.float32))
            self.due[lead] = 2 * now.rows
        if final:
            self.last[lead] = now

    def _show(self) -> None:
        leads = list(dict.fromkeys(self.stats.groups.values()))
        rows = max((self.stats.rows(lead) for lead in leads), default=0)
        speed = rows / max(time.perf_counter() - self.began, 1e-9)
        size = self.stats.plan().kept_bytes / 1e6
        done = sum(self._done(lead) for lead in leads)
        self.bar = f"\r{rows:,} rows, {speed:,.0f} rows/s, {size:,.0f} MB, {done} of {len(leads)} inputs done "
        print(self.bar, end="", file=sys.stderr, flush=True)
