"""Which pairs are trained on, by the scores of the images before and after (paper, section 3.2)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from npnet_training.errors import SettingsError

_CLAUSE = re.compile(
    r"(?P<name>\S+) "
    r"(?:(?P<verb>rises?)(?: by (?P<margin>[-+.\de]+))?|holds?|reach(?:es)? (?P<value>[-+.\de]+))"
)


@dataclass(frozen=True)
class Clause:
    """A condition on one scorer: after > before + margin, after >= before, or after >= value."""

    name: str
    text: str
    margin: float | None = None
    value: float | None = None

    def holds(self, before: float, after: float) -> bool:
        """Whether it is met."""
        if self.value is not None:
            return after >= self.value
        return after >= before if self.margin is None else after > before + self.margin


@dataclass(frozen=True)
class SelectionRule:
    """Clauses that must all hold."""

    clauses: tuple[Clause, ...]

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> Self:
        """Read a rule.

        Args:
            text: `keep all`, or clauses joined by `and`: `NAME rises`, `NAME rises by 0.1`, `NAME holds`,
                `NAME reaches 1`; `all` for NAME means every scorer.
            names: of the scorers there are.

        Raises:
            SettingsError: not such a rule, or of a scorer that is not used.
        """
        if text.strip() == "keep all":
            return cls(())
        clauses: list[Clause] = []
        for part in text.split(" and "):
            match = _CLAUSE.fullmatch(part.strip())
            try:
                margin = float((match and match["margin"]) or 0)
                value = float(match["value"]) if match and match["value"] else None
            except ValueError:
                match = None
            if match is None:
                raise SettingsError(
                    f"--rule: expected 'keep all' or 'NAME rises [by M]', 'NAME holds', 'NAME reaches V', "
                    f"joined by 'and'; given {part.strip()!r}"
                )
            wanted = list(names) if match["name"] == "all" else [match["name"]]
            if not set(wanted) <= set(names) or not wanted:
                raise SettingsError(
                    f"--rule: {match['name']!r} is none of the scorers in use "
                    f"({', '.join(names) or 'none'}); add --scorers {match['name']}"
                )
            clauses += [
                Clause(name, part.strip().replace("all", name, 1) if match["name"] == "all" else part.strip(),
                       margin if match["verb"] else None, value)
                for name in wanted
            ]  # fmt: skip
        return cls(tuple(clauses))

    def decide(self, before: Mapping[str, float], after: Mapping[str, float]) -> tuple[bool, str]:
        """Whether to keep a pair, and why."""
        for clause in self.clauses:
            old, new = before[clause.name], after[clause.name]
            if not (math.isfinite(old) and math.isfinite(new)):
                return False, f"{clause.name} gave no number"
            if not clause.holds(old, new):
                return False, f"not: {clause.text} ({old:.6g} -> {new:.6g})"
        return True, " and ".join(clause.text for clause in self.clauses) or "keep all"
