"""Does criticality pick better than chance, and a real training: `python -m benchmarks.survival`.

`arms` says what is compared, `cells` how it is trained, `training` trains one cell, `pool` many at
a time; of the rows, `tables` and `pages` write what stands under docs/.
"""
