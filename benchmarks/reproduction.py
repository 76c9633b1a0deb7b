"""What the programs that make published tables again have in common: stored cells, runs, intervals, Markdown.

A cell is one method on one split. It is stored when it is finished, so a run that was stopped goes on
where it was, and tables are made without a run.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import set_num_threads
from threadpoolctl import threadpool_limits

from linear_protocols import Published, Scored
from polytask.compare.statistics import Interval, Parts, corrected_error, interval, standard_error
from polytask.core.data import Ints
from polytask.core.task import Floats

Key = tuple[str, str, int]
"""Protocol, method, split."""


class Store:
    """Finished cells in one SQLite file.

    Parameters
    ----------
    folder
        Where the file is.
    budget
        What a cell may spend; cells with another budget are not seen.
    """

    def __init__(self, folder: Path, budget: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.budget = budget
        self._database = sqlite3.connect(folder / "cells.sqlite")
        self._database.execute(
            "create table if not exists cells (protocol text, method text, split integer, budget text, "
            "facts text, predictions blob, primary key (protocol, method, split, budget))"
        )

    def finished(self) -> set[Key]:
        """Return the keys of the stored cells."""
        found = self._database.execute("select protocol, method, split from cells where budget = ?", (self.budget,))
        return set(found)

    def put(self, key: Key, facts: dict[str, Any], numbers: bytes) -> None:
        """Keep a cell."""
        with self._database:
            self._database.execute(
                "insert or replace into cells values (?, ?, ?, ?, ?, ?)",
                (*key, self.budget, json.dumps(facts), numbers),
            )

    def read(self, protocol: str) -> dict[tuple[str, int], tuple[dict[str, Any], Floats]]:
        """Return (method, split) → facts and numbers of a protocol."""
        rows = self._database.execute(
            "select method, split, facts, predictions from cells where protocol = ? and budget = ?",
            (protocol, self.budget),
        )
        return {(method, split): (json.loads(facts), np.frombuffer(blob)) for method, split, facts, blob in rows}


def _one_thread() -> None:
    threadpool_limits(1)
    set_num_threads(1)


def run_all(
    keys: Iterable[Key], store: Store, jobs: int, run: Callable[[Key], tuple[Key, dict[str, Any], bytes]]
) -> None:
    """Run the cells that are not stored yet, ``jobs`` at a time, each in one thread."""
    done_before = store.finished()
    left = [key for key in keys if key not in done_before]
    print(f"{len(left)} cells to run, budget {store.budget}, {jobs} at a time", flush=True)
    started, done = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs, initializer=_one_thread) as pool:
        running: set[Future[Any]] = set()
        waiting = iter(left)
        while True:
            while len(running) < 2 * jobs and (key := next(waiting, None)) is not None:
                running.add(pool.submit(run, key))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                key, facts, numbers = future.result()
                store.put(key, facts, numbers)
                done += 1
                clock = f"{time.perf_counter() - started:6.0f} s {done}/{len(left)}"
                print(f"{clock} {' '.join(map(str, key))}: {_said(facts)} ({facts['seconds']:.1f} s)", flush=True)


def _said(facts: dict[str, Any]) -> str:
    if "scores" in facts:
        return f"{next(iter(facts['scores'].values())):.4g}"
    return str(facts.get("refused", facts.get("recovered")))


# -- scores of a method ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One method over the splits of a protocol.

    Parameters
    ----------
    values
        Score of every split.
    against
        Mean difference from the baseline with its interval; None for the baseline.
    higher_is_better
        Of the score.
    tasks
        Mean over splits of the score of every task, where it is a mean over tasks.
    """

    values: Floats
    against: Interval | None
    higher_is_better: bool
    tasks: Floats

    @property
    def text(self) -> str:
        """Mean and standard deviation over splits."""
        mean, spread = self.values.mean(), self.values.std(ddof=1)
        decimals = 1 if abs(mean) >= 100 else 2 if abs(mean) >= 20 else 3
        return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"

    @property
    def gap(self) -> str:
        """The difference from the baseline with its interval."""
        return "" if self.against is None else gap_text(self.against)

    def mark(self, text: str) -> str:
        """Return the text bold where the method is surely better than the baseline, in italics where surely worse."""
        if self.against is None or self.against.low <= 0 <= self.against.high:
            return text
        return f"**{text}**" if (self.against.value > 0) == self.higher_is_better else f"*{text}*"


def gap_text(gap: Interval) -> str:
    """Write a difference with its interval."""
    return f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"


def difference(
    ours: Sequence[Scored],
    theirs: Sequence[Scored],
    rows: Sequence[Ints],
    test_to_train: float,
    *,
    overlapping: bool = True,
) -> Interval:
    """Return the mean paired difference of two methods over splits, and its interval.

    Parameters
    ----------
    ours, theirs
        Score and influences of every test label, of every split.
    rows
        Row of every test label in the whole data set, of every split.
    test_to_train
        Test rows per training row.
    overlapping
        Whether training rows of different splits are partly the same.
    """
    d = np.array([one[0] - other[0] for one, other in zip(ours, theirs, strict=True)])
    if not overlapping:
        return interval(float(d.mean()), corrected_error(d, 0.0), len(d) - 1)
    influences = tuple((row, one[1] - other[1]) for row, one, other in zip(rows, ours, theirs, strict=True))
    return interval(float(d.mean()), *standard_error(Parts(d, influences), test_to_train))


# -- Markdown ----------------------------------------------------------------------------------

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def line(cells: Iterable[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def head(cells: Sequence[str]) -> list[str]:
    """Return the first two rows of a table."""
    return [line(cells), line(["---"] * len(cells))]


def published_lines(figures: Sequence[Published]) -> list[str]:
    """Return the figures of the literature, one line per score and source."""
    if not figures:
        return ["No published figure has this protocol."]
    by_source: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in figures:
        by_source[item.metric, item.source].append(f"{item.what} {item.value}")
    return [f"Published, {metric}: {'; '.join(said)} ({source})." for (metric, source), said in by_source.items()]


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the two markers of a file."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
