"""`python -m benchmarks.accuracy`, from the repository's root."""

from benchmarks.accuracy.run import main

main()
