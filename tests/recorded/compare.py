"""Say which recorded runs differ, and where each does first: ``compare.py OLD.json NEW.json``."""

import json
import sys
from collections import Counter
from pathlib import Path


def first_difference(old, new):
    """Return the first moment at which two runs differ, and the parts that do; None if none.

    Args:
        old: moment -> part -> digest.
        new: likewise.
    """
    for moment in [*old, *(extra for extra in new if extra not in old)]:
        if moment not in old or moment not in new:
            return moment, ["only in " + ("old" if moment in old else "new")]
        a, b = old[moment], new[moment]
        parts = [part for part in {**a, **b} if a.get(part) != b.get(part)]
        if parts:
            return moment, parts
    return None


def compare(old, new):
    """Return lines that name all differences, and how many runs are the same."""
    lines, kinds, same = [], Counter(), 0
    for name in sorted({**old, **new}):
        if name not in old or name not in new:
            lines.append(f"{name}: only in {'old' if name in old else 'new'}")
            continue
        found = first_difference(old[name], new[name])
        if found is None:
            same += 1
            continue
        moment, parts = found
        kinds.update(parts)
        lines.append(f"{name}: first at {moment!r}: {', '.join(parts)}")
    lines += [f"differ first in {part}: {number} runs" for part, number in kinds.most_common()]
    return lines, same


def main():
    if len(sys.argv) != 3:
        raise SystemExit("Expected two files: compare.py OLD.json NEW.json")
    old, new = (json.loads(Path(name).read_text()) for name in sys.argv[1:])
    lines, same = compare(old, new)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{same} of {len({**old, **new})} runs are bit-identical\n")
    return 1 if lines or not same else 0


if __name__ == "__main__":
    sys.exit(main())
