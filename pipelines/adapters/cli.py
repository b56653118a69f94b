"""``streamsvd adapter eva | corda | lora-ga | weights``: a thin face of the functions of the same names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from streamsvd.pipelines.adapters.settings import Common, Text
from streamsvd.pipelines.adapters.text import load_model
from streamsvd.settings import Flag
from streamsvd.terminal import print_json, usage

app = App(name="adapter", help="Initial LoRA adapters that PEFT loads, from text or weights.", help_format="plaintext")


@app.command(sort_key=1)
def eva(
    *,
    common: Common,
    text: Text,
    rho: float = 2.0,
    stop: float = 0.999,
    whiten: Flag = False,
    redistribute: bool = True,
    rows: int | None = None,
    memory: float | None = None,
    stats: str | None = None,
) -> int:
    """Explained-variance adapters: A from the components of each layer's inputs, ranks where the variance is.

    Parameters
    ----------
    rho
        A layer's rank is at most rho x rank.
    stop
        Stop reading when half of the rows gave components that capture this share of the best energy; 1 reads everything.
    whiten
        Divide the rows of A by the roots of their singular values.
    redistribute
        Let layers compete for ranks.
    rows
        Cap on the tokens.
    memory
        Gigabytes for the statistics; the widest layers are truncated to fit.
    stats
        File that keeps the statistics.
    """
    from streamsvd.pipelines.adapters.eva import eva as run

    model, data = _opened(common, text)
    with usage(ValueError):
        found = run(
            model,
            data,
            common.rank,
            rho=rho,
            stop=None if stop == 1 else stop,
            whiten=whiten,
            redistribute=redistribute,
            targets=common.names(),
            rows=rows,
            alpha=common.alpha,
            rslora=common.rslora,
            memory=None if memory is None else int(memory * 1e9),
            progress=False if common.json else None,
            on_plan=None if common.json else _print_plan,
        )
    found.save_adapter(common.out)
    if stats is not None:
        found.stats.save(stats)
    if common.picture is not None:
        found.plot(common.picture)
    told = {"batches": found.batches, "seconds": found.seconds, "converged": found.converged}
    code = _tell(found.rows(), told | {"not_done": list(found.not_done), "unreached": list(found.unreached)}, common)
    if found.not_done and not common.json:
        print(
            f"not settled yet: {len(found.not_done)} of {len(found.layers)} layers; more text would change them a little"
        )
    return code


@app.command(sort_key=2)
def corda(
    *,
    common: Common,
    text: Text,
    mode: Literal["ipm", "kpm"] = "ipm",
    covariance: Literal["exact", "lowrank"] = "exact",
    damping: float = 0.01,
    kept: int = 64,
    peft_scaling: Flag = False,
    original: Flag = False,
) -> int:
    """Context-oriented adapters: the decomposition of W C, C the covariance of a layer's inputs.

    Parameters
    ----------
    mode
        Train the largest components (ipm) or the smallest, which keeps knowledge (kpm).
    covariance
        All of C, or its leading directions.
    damping
        Share of the mean diagonal that is added to C.
    kept
        Leading directions of a low-rank C.
    peft_scaling
        Weigh calls as PEFT does.
    original
        Write the form of rank 2r for the unmodified model.
    """
    from streamsvd.pipelines.adapters.corda import corda as run

    model, data = _opened(common, text)
    with usage(ValueError):
        found = run(
            model,
            data,
            common.rank,
            mode=mode,
            covariance=covariance,
            damping=damping,
            kept=kept,
            peft_scaling=peft_scaling,
            targets=common.names(),
            alpha=common.alpha,
            rslora=common.rslora,
        )
    return _written(found, common, original)


@app.command(sort_key=3)
def lora_ga(*, common: Common, text: Text, original: Flag = False) -> int:
    """Adapters whose first step is that of full fine-tuning: the SVD of the mean gradient.

    Parameters
    ----------
    original
        Write the form of rank 2r for the unmodified model.
    """
    from streamsvd.pipelines.adapters.lora_ga import lora_ga as run

    model, data = _opened(common, text)
    with usage(ValueError):
        found = run(model, data, common.rank, targets=common.names(), alpha=common.alpha, rslora=common.rslora)
    return _written(found, common, original)


def _weights(method: str, common: Common, original: bool) -> int:
    from streamsvd.pipelines.adapters.weights import from_weights

    with usage(FileNotFoundError):
        model, _ = load_model(common.model, dtype=common.dtype, device=common.device)
    with usage(ValueError):
        found = from_weights(
            model, common.rank, method=method, targets=common.names(), alpha=common.alpha, rslora=common.rslora
        )
    return _written(found, common, original)


@app.command(sort_key=4)
def pissa(*, common: Common, original: Flag = False) -> int:
    """Principal components of the weights (no data).

    Parameters
    ----------
    original
        Write the form of rank 2r for the unmodified model.
    """
    return _weights("pissa", common, original)


@app.command(sort_key=5)
def milora(*, common: Common, original: Flag = False) -> int:
    """Smallest components of the weights (no data).

    Parameters
    ----------
    original
        Write the form of rank 2r for the unmodified model.
    """
    return _weights("milora", common, original)


@app.command(sort_key=6)
def olora(*, common: Common, original: Flag = False) -> int:
    """Orthonormal columns of the weights' QR factorization (no data).

    Parameters
    ----------
    original
        Write the form of rank 2r for the unmodified model.
    """
    return _weights("olora", common, original)


def _opened(common: Common, text: Text) -> tuple[Any, Any]:
    with usage(FileNotFoundError):
        model, tokenizer = load_model(common.model, dtype=common.dtype, device=common.device)
    return model, text.read(tokenizer)


def _written(found: Any, common: Common, original: bool) -> int:
    """Write adapters that change the base model: with the residual model, or in the form for the original."""
    began = time.perf_counter()
    if original:
        found.save_for_original(common.out)
    else:
        found.save_adapter(common.out)
    if common.picture is not None:
        from streamsvd.pipelines.adapters.picture import draw_adapters

        draw_adapters(found, Path(common.picture))
    told = {
        "method": found.method,
        "skipped": list(found.skipped),
        "load_on": common.model if original else str(Path(common.out) / "residual"),
    }
    return _tell(found.rows(), told | {"write_seconds": time.perf_counter() - began}, common)


def _print_plan(plan: Any) -> None:
    print(plan)


def _tell(rows: list[dict[str, Any]], told: dict[str, Any], common: Common) -> int:
    """Show a table with a line for each layer."""
    if common.json:
        print_json({"layers": rows, **told, "out": common.out})
        return 0
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, *cells):
        print(
            "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        )
    for name, value in told.items():
        if value not in ([], None, ""):
            print(f"{name.replace('_', ' ')}: {_cell(value)}")
    print(f"wrote {common.out}")
    return 0


def _cell(value: Any) -> str:
    return (
        ""
        if value is None
        else f"{value:.4g}"
        if isinstance(value, float)
        else ("yes" if value is True else "no" if value is False else str(value))
    )
