"""The benchmark: one table, made in one run, of every method on every case (``make bench``, options by ``make bench ARGS=...``).

The methods take turns, run after run, so that a machine that slows down or speeds up does so for all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine

if TYPE_CHECKING:
    import numpy as np
    from cases import Case
    from peers import Method, Run

FLOW_PARTS = ("fold", "convert", "memory", "checkpoint")
RESULTS = Path(__file__).parent / "results"
MARKS = [10**4, 10**5, 10**6]
# At 256 columns the (4r, 4r) matrices of a fold would outweigh the rows in a truncated state, whose limit counts rows.
SHAPES = {"truncated": (1024, 16), "gram": (256, 16)}


def main(arguments: list[str] | None = None) -> None:
    """Read the options, fix the threads before anything numerical is imported, and do what was asked."""
    options = parser().parse_args(arguments)
    if options.flow is not None:
        return None  # flow.py does that
    if options.read:
        return _show(json.loads(results_file(options.read).read_text()), options)
    machine.set_threads(options.threads)
    import cases

    chosen = cases.TINY if options.quick and not options.cases else cases.find(options.cases)
    if options.sketch_profile:
        return profile(cases.find(options.sketch_profile)[0], options.kinds.split(",")[0])
    if options.memory:
        import memory

        return print(memory.growth_table(SHAPES, 1024, MARKS, options.threads))
    if options.scaling:
        return scaling(chosen, options)
    results = run(chosen, options)
    if options.json:
        file = results_file(options.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        say(f"written to {file}")
    return _show(results, options)


def run(chosen: list[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Measure the cases one after the other and return everything that the table needs."""
    import peers

    methods = peers.find(options.methods, options.kinds)
    described = machine.describe(options.threads)
    kept = {name: getattr(options, name) for name in ("runs", "threads", "kinds", "methods")}
    return {"machine": described, "options": kept, "cases": [measure(case, methods, options) for case in chosen]}


def measure(case: Case, methods: list[Method], options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case: accuracy from a first run over all rows, which also warms up; then the timed runs in turn; then the memory."""
    import cases

    say(f"{case.name}: data and truth")
    X = cases.data(case)
    found = [{"name": method.name, "label": method.label} for method in methods]
    ready: list[tuple[Method, Run, list[np.ndarray], dict[str, Any]]] = []
    for method, entry in zip(methods, found, strict=True):
        part = X[: case.slow_rows if method.slow else None]
        say(f"{case.name}: {method.label}, first run")
        reason = _first(case, method, X, entry)
        if reason:
            entry["skipped"] = reason
            continue
        entry |= {"rows": part.shape[0], "seconds": [], "cpu_seconds": []}
        ready.append((method, method.prepare(case), case.batches(part), entry))
    machine.verify_threads(options.threads)
    gc.collect()
    gc.freeze()  # or each collection below walks the modules of torch
    for number in range(options.runs):
        say(f"{case.name}: run {number + 1} of {options.runs}")
        for _, call, batches, entry in ready:
            seconds, cpu = clock(call, batches)
            entry["seconds"].append(seconds)
            entry["cpu_seconds"].append(cpu)
    if not options.no_memory:
        for method, _, _, entry in ready:
            _weigh(case, method, entry, options.threads)
    return {**asdict(case), "title": case.title, "methods": found}


def clock(call: Run, batches: list[np.ndarray]) -> tuple[float, float]:
    """Return wall and processor time of one run."""
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    call(batches)
    return time.perf_counter() - start, time.process_time() - cpu


def _first(case: Case, method: Method, X: np.ndarray, entry: dict[str, Any]) -> str | None:
    """Run a method over all rows, enter how accurate it is, and return why it cannot be measured, if so."""
    import cases
    import peers

    try:
        found = method.prepare(case)(case.batches(X))
    except peers.NotMeasuredError as error:
        return str(error)
    except Exception as error:
        if method.ours:
            raise
        return f"it failed with {type(error).__name__}: {error}"
    entry["version"] = method.version
    if not method.exact:
        return None
    true = cases.truth(X, case.rank, center=method.center)
    entry |= {"error": true.error(found.s), "found": found.s.size}
    if method.ours:
        import memory

        assert found.vt is not None
        assert found.bound is not None
        entry["slack"] = found.bound / cases.residual(X, found.vt, center=True)
        entry |= {"kind": found.kind, "kept": found.kept, "reason": found.reason}
        entry["unit"], entry["unit_bytes"] = memory.unit(found.kind, case.columns, found.kept, X.itemsize)
    return None


def _weigh(case: Case, method: Method, entry: dict[str, Any], threads: int) -> None:
    import memory

    say(f"{case.name}: memory of {method.label}")
    entry["memory"] = memory.in_child("case", case.name, method.name, "resident", threads=threads)["bytes"]
    if method.ours:
        entry["arrays"] = memory.in_child("case", case.name, method.name, "traced", threads=threads)["bytes"]


def scaling(chosen: list[Case], options: argparse.Namespace) -> None:
    """Time ours with one thread and with all cores in turn and print how much the second gains."""
    from statistics import median

    import cases
    import peers
    from threadpoolctl import threadpool_limits

    many = machine.cores()
    print(f"rows/s, medians of {options.runs} runs in turn")
    print(f"{'case':<10} {'method':<24} {'1 thread':>12} {f'{many} threads':>12} {'gain':>6}")
    for case in chosen:
        X = cases.data(case)
        batches = case.batches(X)
        for method in peers.find("ours", options.kinds):
            call, times = method.prepare(case), {1: [], many: []}
            call(batches)
            for _ in range(options.runs):
                for threads, seconds in times.items():
                    with threadpool_limits(threads):
                        machine.verify_threads(threads)
                        seconds.append(clock(call, batches)[0])
            one, all_cores = (case.rows / median(times[threads]) for threads in (1, many))
            print(f"{case.name:<10} {method.label:<24} {one:>12,.0f} {all_cores:>12,.0f} {all_cores / one:>6.2f}")


def profile(case: Case, kind: str) -> None:
    """Print where the time of our fold goes."""
    import cProfile
    import pstats

    import cases
    import peers

    batches, call = case.batches(cases.data(case)), peers.ours(kind).prepare(case)
    call(batches)
    seconds, _ = clock(call, batches)
    print(f"{case.title}: {case.rows / seconds:,.0f} rows/s without the profiler")
    profiler = cProfile.Profile()
    profiler.runcall(call, batches)
    stats = pstats.Stats(profiler).strip_dirs()
    stats.sort_stats("tottime").print_stats(25)
    stats.sort_stats("cumulative").print_stats(25)


def _show(results: dict[str, Any], options: argparse.Namespace) -> None:
    import table

    print(table.render(results, markdown=options.markdown))
    if options.goals:
        print("\n" + table.goals(results))


def results_file(name: str) -> Path:
    """Return where results of this name are kept."""
    return Path(name) if Path(name).parent != Path() else RESULTS / name


def say(text: str) -> None:
    """Tell on the error stream what is being done."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _runs(text: str) -> int:
    if int(text) < 1:
        msg = f"{text} runs; expected at least 1 (5 or more for numbers to quote)"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the options, which `flow.py` shares."""
    found = argparse.ArgumentParser(
        prog="make bench ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--cases", help="comma-separated: d784,d1024,d4096,d16384,d76800,push (default: all), or tiny,tiny-push")
    add("--methods", help="comma-separated: sklearn,peft,gensim,ours,floor (default: all)")
    add("--kinds", default="auto", help="states of ours: auto, gram, truncated, several with commas (default: auto)")
    add("--runs", type=_runs, default=5, help="timed runs (default: 5)")
    add("--threads", type=int, default=1, help="BLAS threads for everyone (default: 1)")
    add("--no-memory", action="store_true", help="leave the memory column out (one more run of each method)")
    add("--quick", action="store_true", help="tiny sizes, which show that it runs and nothing else")
    add("--json", metavar="FILE", help="keep the results; a bare name goes to bench/results/")
    add("--read", metavar="FILE", help="print the table of kept results and measure nothing")
    add("--markdown", action="store_true", help="print the table as the README shows it")
    add("--goals", action="store_true", help="also say which goals were reached")
    add("--memory", action="store_true", help="only: memory of both states after 10^4, 10^5 and 10^6 rows")
    add("--scaling", action="store_true", help="only: ours with 1 thread against all cores")
    add("--sketch-profile", metavar="CASE", help="only: a profile of ours on one case (--kinds chooses the state)")
    add(
        "--flow",
        nargs="?",
        const="",
        metavar="PARTS",
        help=f"only: the data flow, or parts of it: {','.join(FLOW_PARTS)}",
    )
    return found


def wants_flow(options: argparse.Namespace) -> bool:
    """Tell whether the data flow is to be measured: where it was asked for, or nothing else was."""
    only = (options.cases, options.methods, options.memory, options.scaling, options.sketch_profile)
    return options.flow is not None or not any(only)


if __name__ == "__main__":
    main()
