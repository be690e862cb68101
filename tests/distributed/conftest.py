"""Networks and batches are those of the wrapper's and the methods' tests."""

import sys
from pathlib import Path

for folder in ("wrapper", "methods"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
