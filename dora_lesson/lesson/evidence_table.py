"""What the course knows of LoRA and DoRA as a table, with the sentences and their sources folded below it."""

from __future__ import annotations

import html

from dora_lesson.advisor.findings import Finding, findings

SIDES = {"dora": "for DoRA", "lora": "for LoRA", "either": "for neither"}


class EvidenceTable:
    """One line a finding: the claim, for whom it speaks, the kind of evidence, and whether or where it is shown."""

    def __init__(self, known: list[Finding]) -> None:
        self.findings = sorted(known, key=lambda each: [*SIDES].index(each.side))
        self.rows = [(each.claim, SIDES[each.side], each.kind, each.shown or "\u2013") for each in self.findings]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        sentences = "".join(f"<li>{html.escape(str(each))}</li>" for each in self.findings)
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<details><summary>Each in full, with its source</summary><ul>{sentences}</ul></details>"
        )

    def __repr__(self) -> str:
        widths = [max(len(row[i]) for row in [_HEAD, *self.rows]) for i in range(len(_HEAD))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [_HEAD, *self.rows]
        )


_HEAD = ("claim", "speaks", "evidence", "shown")


def evidence_table() -> EvidenceTable:
    """All findings of `findings()`, those for DoRA first."""
    return EvidenceTable(findings())
