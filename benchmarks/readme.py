"""Write the generated tables of the README from the CSV files under results/.

python benchmarks/readme.py
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def mask_update() -> str:
    table = [
        [r["contender"], f"{float(r['seconds']):.2f} s", f"{float(r['ratio_to_whole_update']):.2f}"]
        for r in rows("mask_update_cpu2")
    ]
    return tabulate(table, ["", "time", "ratio"], tablefmt="github", disable_numparse=True)


def insert(text: str, marker: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"Expected the markers of {marker!r} in README.md but found none")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for marker, table in (("mask update table", mask_update()),):
        text = insert(text, marker, table)
    readme.write_text(text)


if __name__ == "__main__":
    main()
