# SPDX-License-Identifier: Apache-2.0
"""What `mpsnn check` finds: one line per node class, and the table of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mpsnn
from mpsnn import check_cases as cases
from mpsnn._errors import make_error

HEAD = ("class", "cases", "against reference", "against differences", "verdict")


@dataclass
class ClassResult:
    """Worst error / tolerance over the cases of a class; None where nothing was compared."""

    node_class: str
    cases: int = 0
    against_reference: float | None = None
    against_differences: float | None = None
    against_torch: float | None = None
    elements: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    refuses: bool = False  #: has no gradient, and says so
    gradient_classes: set[str] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def verdict(self) -> str:
        return "FAIL" if self.problems else "no gradient, and says so" if self.refuses else "pass"

    def cells(self, torch: bool) -> list[str]:
        def ratio(value: float | None) -> str:
            return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.1e}"

        numbers = [ratio(self.against_reference), ratio(self.against_differences)] + (
            [ratio(self.against_torch)] if torch else []
        )
        return [self.node_class, str(self.cases), *numbers, self.verdict]


def head(torch: bool) -> list[str]:
    return [*HEAD[:-1], *(["against PyTorch"] if torch else []), HEAD[-1]]


def chosen(names: Sequence[str]) -> list[str]:
    """The classes to check: those named, or all. Gradient classes stand for their forward classes' cases and are not named."""
    known = cases.forward_classes()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.3)
            if name in cases.node_classes():
                sentence, hint = f"{name} is checked through the classes that it belongs to.", "name a forward class"
            else:
                sentence, hint = (
                    f"there is no node class {name}.",
                    f"{', '.join(near)}" if near else "mpsnn check --all",
                )
            raise make_error("OptionError", sentence, expected="a node class", actual=name, hint=hint)
    return list(names) or known


def check_class(name: str, count: int, seed: int, torch: bool = False) -> ClassResult:
    """Runs the first `count` cases of a class."""
    result = ClassResult(name)
    if name in cases.NO_GRADIENT:
        result.refuses = bool(cases.refusal(name))
        result.problems = [] if result.refuses else ["it has no gradient, and does not say so by name"]
        return result
    if name not in cases.MAKERS:
        result.problems = ["there is no case for it, and it is not listed among the classes without a gradient"]
        return result
    for number, case in enumerate(cases.cases_of(name, count, seed)):
        result.cases += 1
        try:
            _run_case(result, case, seed + number, torch)
        except mpsnn.Error as error:
            result.problems.append(f"case {number} ({case.about}): {error}")
    return result


def _run_case(result: ClassResult, case: cases.Case, seed: int, torch: bool) -> None:
    report = case.check(seed)
    result.gradient_classes.update(report.gradient_classes)
    for row in report.rows:
        result.elements += row.checked
        result.against_reference = max(result.against_reference or 0.0, row.against_reference)
        if row.against_differences is not None:
            result.against_differences = max(result.against_differences or 0.0, row.against_differences)
        for reason, count in row.skipped.items():
            result.skipped[reason] = result.skipped.get(reason, 0) + count
    if not report.ok:
        result.problems.append(f"{case.about}, shapes {case.shapes}\n{report}")
    if torch:
        from mpsnn.check_torch import worst_difference

        worst = worst_difference(case, report)
        if worst is not None:
            result.against_torch = max(result.against_torch or 0.0, worst)
            if worst > 1:
                result.problems.append(
                    f"{case.about}, shapes {case.shapes}: differs from PyTorch by {worst:.3g} tolerances"
                )


def unused_gradient_classes(results: Sequence[ClassResult]) -> list[str]:
    """Gradient classes that no case has used: the check does not cover them."""
    used = {name for result in results for name in result.gradient_classes}
    return [name for name in cases.gradient_classes() if name not in used]


def run(
    names: Sequence[str],
    count: int,
    seed: int,
    torch: bool = False,
    each: Callable[[ClassResult], None] = lambda _: None,
) -> list[ClassResult]:
    """Checks classes (all where none are named), and, where all are checked, that every gradient class was used."""
    results = []
    for name in chosen(names):
        results.append(check_class(name, count, seed, torch))
        each(results[-1])
    if not names:
        results += [
            ClassResult(name, problems=["no case has used this gradient class"])
            for name in unused_gradient_classes(results)
        ]
    return results


def markdown(results: Sequence[ClassResult], torch: bool) -> str:
    """The table for the documentation."""
    lines = [head(torch), ["---", *["---:"] * (len(head(torch)) - 2), "---"]]
    for result in results:
        cells = result.cells(torch)
        lines.append([f"`{cells[0]}`", *cells[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
