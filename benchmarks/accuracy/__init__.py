"""Accuracy of every method over sparsity: `python -m benchmarks.accuracy --help`.

`cells` says what is trained, `run` trains it, `rows` keeps what came out in a CSV, of which `table`
and `pages` write what stands under docs/.
"""
