"""``kvbench validate``: is a compressor sound?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from kvbench.cli.console import out
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import Json
from kvbench.errors import EXIT_OK, EXIT_REGRESSION

if TYPE_CHECKING:
    from kvbench.conformance.kit import Check


def validate(specs: list[str], /, *, json_: Json = False) -> int:
    """Run the conformance kit on compressors: bytes, no full copy, monotonic error, batches, crop, beams, canary, …

    Exit codes: 0 all checks pass, 1 one fails.
    """
    refuse_slips(compressors=specs)
    from dataclasses import asdict

    from kvbench.conformance.kit import validate as check

    failed = False
    for spec in specs:
        checks = check(spec)
        failed |= not all(each.passed for each in checks)
        if json_:
            print(json.dumps({"compressor": spec, "checks": [asdict(each) for each in checks]}))
        else:
            out.print(checks_table(spec, checks))
    return EXIT_REGRESSION if failed else EXIT_OK


def checks_table(spec: str, checks: list[Check]) -> Table:
    """The verdicts of the conformance kit on one compressor."""
    table = Table(title=spec, title_justify="left", box=None, pad_edge=False, show_header=False)
    for check in checks:
        mark = Text("✓", "green") if check.passed else Text("✗ FAILED", "bold red")
        table.add_row(mark, check.name, Text(check.detail))
    return table
