"""Every sketch obeys every law on every array library: a new sketch or backend gets all of them for one line."""

from __future__ import annotations

from functools import partial

import pytest

from backends import BACKENDS
from checks import COLUMNS, KEPT, LAWS, RANK
from streamsvd.planner import sketch

SKETCHES = {
    "gram": {"kind": "gram"},
    "truncated": {"kind": "truncated"},
    "half shrunk": {"kind": "truncated", "shrink": 0.5},
    "frequent directions": {"kind": "truncated", "shrink": 1.0},
}


def make(options, **more):
    return sketch(**{"columns": COLUMNS, "rank": RANK, "kept": KEPT, **options, **more})


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("check_"))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SKETCHES)
def test_law(law, backend, kind):
    law(partial(make, SKETCHES[kind]), backend)
