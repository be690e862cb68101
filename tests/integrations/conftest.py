"""Networks and batches are those of the wrapper's tests; processes those of the ranks' tests."""

import sys
from pathlib import Path

for folder in ("wrapper", "methods", "distributed"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
