"""Every deep sharing architecture of the library on the same data, with the same network and budget.

    python benchmarks/reproduce_deep.py                              everything that is not done yet
    python benchmarks/reproduce_deep.py --only omniglot school       some protocols (the beginning of their names)
    python benchmarks/reproduce_deep.py --methods cross-stitch mmoe  some methods
    python benchmarks/reproduce_deep.py --report docs/deep.md        from the stored cells write the tables there

A cell is one method on one split; it is stored when it is finished (``cells.sqlite`` in ``--folder``), so a
run that was stopped goes on where it was, and ``--report`` needs no run.

Every method gets the protocol's network (:mod:`deep_protocols`), the same number of epochs, batches and
learning rate (cosine schedule, no early stopping), and three settings of one hyper-parameter: the strength of
its sharing where it has one, otherwise weight decay. The one with the best score on a quarter of the training
rows of the first split, by networks trained on the other three quarters, is used on all splits. Test rows are
read once, by the final model. Adaptive sharing alone holds out a fifth of the training rows, to see what tasks
find difficult, and keeps the epoch that is best there. What a method trains beforehand (single-task networks
whose weights tensor factorisation decomposes, say) has the same budget once more and counts in its time.

Differences are paired over splits; their 95 % intervals take sampling of test rows and of training rows apart
(:mod:`polytask.compare.statistics`) and are not adjusted for their number.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import deep_protocols as dp
from deep_cells import Method, absent, command, complete, grid, plan, run_cell, setting_text, sizes, task_counts
from polytask import registry
from polytask.compare.statistics import Interval
from polytask.core.task import Floats
from reproduction import Key, Row, Store, difference, gap_text, head, line, published_lines

BUDGET = "3 settings"

_SQUARED = {"omniglot": "every drawing would pass through the networks of all 20 alphabets"}
_ALONE = dict.fromkeys(("omniglot", "school"), "it relates tasks by rows that they have in common; here they have none")
_UNORDERED = {"omniglot": "alphabets have no order from simple to hard, and each level would read all pictures again"}
SINGLE, HARD, WIDE = "single-task", "hard sharing", "hard sharing, wide"
CROSS_STITCH, ADAPTIVE, TRACE = "cross-stitch", "adaptive sharing", "soft sharing, trace norm"
FACTORISED = tuple(f"tensor factorisation, {form}" for form in ("LAF", "Tucker", "TT"))

METHODS = (
    Method(SINGLE, "single-task-network"),
    Method(HARD, "hard-sharing"),
    Method(WIDE, "hard-sharing", wide=True),
    Method("soft sharing, L2", "soft-sharing", grid=grid("strength", 1.0, 10.0, 100.0)),
    Method(TRACE, "trace-norm-sharing", grid=grid("strength", 0.5, 2.0, 20.0)),
    Method(CROSS_STITCH, "cross-stitch", left_out=_SQUARED),
    Method("sluice", "sluice", left_out=_SQUARED),
    Method("relationship network", "relationship-network", grid=grid("strength", 0.3, 10.0, 300.0)),
    *(
        Method(label, "tensor-factorisation", {"form": form}, grid("tolerance", 0.2, 0.4, 0.6))
        for label, form in zip(FACTORISED, ("laf", "tucker", "tt"), strict=True)
    ),
    Method(ADAPTIVE, "adaptive-sharing", grid=grid("alpha", 8.0, 32.0, 128.0), left_out=_ALONE, holds_out=True),
    Method("low supervision", "low-supervision"),
    Method("joint many-task", "joint-many-task", left_out=_UNORDERED),
    Method("learned branching", "learned-branching", shares_of_epochs={"anneal_epochs": 2 / 3}),
    Method("MMoE", "mmoe"),
    Method("CGC", "cgc"),
    Method("PLE", "ple", left_out=_SQUARED),
    Method("DSelect-k", "dselect-k"),
    Method("MTAN", "mtan"),
)

PAPERS = (
    ("hard sharing", "chunking, CoNLL-2000 F1", "93.63", "94.10", "Collobert et al. 2011"),
    ("cross-stitch", "NYUv2 segmentation, mean IU by start", "17.7 (ImageNet)", "19.3 (one-task)", "Misra et al. 2016"),
    ("sluice", "OntoNotes, mean error", "-", "up to 15 % less", "Ruder et al. 2019"),
    ("low supervision", "CCG supertagging accuracy", "91-92", "93.26", "Sogaard & Goldberg 2016"),
    ("joint many-task", "chunking, CoNLL-2000 F1", "95.02", "95.77", "Hashimoto et al. 2017"),
    ("relationship network", "Office-Home accuracy", "-", "67.1", "Long et al. 2017"),
    (
        "tensor factorisation",
        "MNIST one-vs-all error, 1,000 examples",
        "9-14 % (shallow)",
        "below 6 %",
        "Yang & Hospedales 2017",
    ),
    (
        "tensor factorisation",
        "Omniglot, 50 alphabets, 5-90 % of drawings",
        "-",
        "better at every share",
        "Yang & Hospedales 2017",
    ),
    ("adaptive sharing", "CelebA accuracy, parameters", "91.44, 134 M", "91.26, 5 M", "Lu et al. 2017"),
    ("MMoE", "Census-Income main AUC", "0.94", "0.94 (hard sharing 0.936)", "Ma et al. 2018"),
)
"""Method, what was measured, without and with it, and where; some from memory."""


def known_methods() -> tuple[Method, ...]:
    """Return the methods whose learner is there."""
    names = registry.learner_names()
    return tuple(method for method in METHODS if method.learner in names)


def run_key(folder: Path, key: Key) -> tuple[Key, dict[str, Any], bytes]:
    """Run one cell (in a worker)."""
    return run_cell(folder, key, METHODS, BUDGET)


def planned(only: Sequence[str], chosen: Sequence[str]) -> list[Key]:
    """Return the cells to run."""
    return plan(dp.PROTOCOLS, known_methods(), only, chosen)


# -- tables -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What is stored of a method on all splits of a protocol.

    Parameters
    ----------
    scored
        Score and influences of every split.
    parameters, seconds
        Mean over splits.
    setting
        The one that was chosen.
    tasks
        Mean over splits of the score of every task.
    """

    scored: list[dp.Scored]
    parameters: float
    seconds: float
    setting: dict[str, Any]
    tasks: Floats


def measured(protocol: dp.Protocol, store: Store) -> dict[str, Measured]:
    """Return label → what was measured, of the methods that have all splits."""
    found = {}
    for label, (setting, whole) in complete(protocol, store, METHODS).items():
        facts = [fact for fact, _ in whole]
        found[label] = Measured(
            [(fact["scores"][protocol.metric], numbers) for fact, numbers in whole],
            float(np.mean([fact["parameters"] for fact in facts])),
            float(np.mean([fact["trained"] for fact in facts])),
            setting,
            np.mean([list(fact["tasks"].values()) for fact in facts], axis=0),
        )
    return found


def against(protocol: dp.Protocol, one: Measured, other: Measured) -> Interval:
    """Return the mean difference of two methods with its interval."""
    places = [protocol.places(protocol.case(split)) for split in range(dp.N_SPLITS)]
    return difference(one.scored, other.scored, places, protocol.test_to_train)


def protocol_lines(protocol: dp.Protocol, store: Store) -> list[str]:
    """Return the table of a protocol."""
    lines = [f"### {protocol.title}", ""]
    found = measured(protocol, store)
    if SINGLE not in found:
        return [*lines, protocol.missing() or "Not run yet.", ""]
    lines += [
        f"{task_counts(protocol.case(0))} Network: {sizes(protocol.network)}, "
        f"{protocol.network['max_epochs']} epochs, batches of at most {protocol.network['batch_size']}, learning rate "
        f"{protocol.network['learning_rate']:g}; wide: {sizes(protocol.wide)} ({protocol.wide_note}).",
        "",
        *head(
            [
                "method",
                protocol.metric,
                "difference from single-task",
                "difference from hard sharing",
                "parameters",
                "setting",
                "CPU s",
            ]
        ),
    ]
    for label, one in found.items():
        gaps = [
            None if label == base or base not in found else against(protocol, one, found[base])
            for base in (SINGLE, HARD)
        ]
        row = Row(np.array([value for value, _ in one.scored]), gaps[0], protocol.higher_is_better, one.tasks)
        texts = ["" if gap is None else gap_text(gap) for gap in gaps]
        lines.append(
            line(
                [
                    label,
                    row.mark(row.text),
                    *texts,
                    f"{one.parameters:,.0f}",
                    setting_text(one.setting),
                    f"{one.seconds:.0f}",
                ]
            )
        )
    return [*lines, "", *absent(protocol, store, known_methods(), found), *published_lines(protocol.published), ""]


def claim_lines(store: Store) -> list[str]:
    """Return what the papers claim, and whether it is found here."""
    lines = ["### Claims of the papers, checked here", ""]
    for protocol in dp.PROTOCOLS:
        if protocol.missing() is None:
            lines += [
                f"- {protocol.title.split(':')[0]}: {text}" for text in _claims(protocol, measured(protocol, store))
            ]
    return [*lines, ""]


def _claims(protocol: dp.Protocol, found: dict[str, Measured]) -> list[str]:
    said = []
    if SINGLE not in found or HARD not in found:
        return said
    if protocol.name == "omniglot":
        for label in (*FACTORISED, TRACE):
            if label in found:
                gap = against(protocol, found[label], found[SINGLE])
                said.append(f"{label} beats single-task networks with few examples: {_answer(gap, protocol)}.")
    if ADAPTIVE in found:
        gap = against(protocol, found[ADAPTIVE], found[SINGLE])
        share = found[ADAPTIVE].parameters / found[SINGLE].parameters
        no_worse = "worse" if _sign(gap, protocol) < 0 else "no worse"
        said.append(
            f"the adaptive tree has {share:.0%} of the parameters of single-task networks, {no_worse}: {gap_text(gap)}."
        )
    if CROSS_STITCH in found:
        better = max if protocol.higher_is_better else min
        best = better((SINGLE, HARD), key=lambda label: np.mean([value for value, _ in found[label].scored]))
        gap = against(protocol, found[CROSS_STITCH], found[best])
        holds = "no" if _sign(gap, protocol) < 0 else "yes"
        said.append(
            f"cross-stitch is as good as the better of single-task and hard sharing ({best}): {holds}, {gap_text(gap)}."
        )
    return said


def _sign(gap: Interval, protocol: dp.Protocol) -> int:
    """Return 1 where a difference is surely an improvement, -1 where it is surely none, 0 where it is open."""
    if gap.low <= 0 <= gap.high:
        return 0
    return 1 if (gap.value > 0) == protocol.higher_is_better else -1


def _answer(gap: Interval, protocol: dp.Protocol) -> str:
    return {1: "yes", 0: "not sure", -1: "no"}[_sign(gap, protocol)] + f", {gap_text(gap)}"


def report(store: Store) -> str:
    """Return all tables as Markdown."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("polytask", "torch", "numpy"))
    lines = [
        f"Made by `make reproduce-deep` ({libraries}, Python {platform.python_version()}). Mean ± standard deviation "
        f"over {dp.N_SPLITS} splits, each with seeds of its own; differences are paired, with 95 % intervals (not "
        "adjusted for their number). **Bold**: better than single-task networks by an interval that does not hold 0; "
        "*italics*: worse. All methods have the same network per task or branch, epochs, batches and learning rate; "
        "one hyper-parameter of three values is chosen within the training rows of the first split. CPU s: training of "
        "one split in one thread, with what a method trains beforehand.",
        "",
    ]
    for protocol in dp.PROTOCOLS:
        lines += protocol_lines(protocol, store)
    lines += claim_lines(store)
    lines += ["### The papers' own figures, on other data or sizes", ""]
    lines += head(["method", "measured", "without", "with", "paper"])
    lines += [line(row) for row in PAPERS]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells and write tables."""
    command(
        "Deep sharing architectures on the same data, network and budget.",
        "runs/reproduce-deep",
        BUDGET,
        planned=planned,
        run=run_key,
        report=report,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
