"""What kvbench's compressors say of themselves, from their classes: ``make catalogue`` writes it down."""

from __future__ import annotations

import json

from kvbench.compressors import registry
from kvbench.compressors.catalogue import FILE
from kvbench.compressors.names import BUILT_IN
from kvbench.measure.small import attends_on_small, example


def catalogue_text() -> str:
    """The content of ``catalogue.json``."""
    entries = []
    for name in BUILT_IN:
        cls = registry.find(name)
        spec = example(cls)
        assert spec is not None, f"say in kvbench/measure/small.py what an example of {name} sets"
        entries.append(cls.outline().to_json() | {"example": spec, "attends": attends_on_small(spec)})
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(catalogue_text(), "utf-8")
