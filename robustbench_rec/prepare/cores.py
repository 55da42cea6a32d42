"""k-cores: rows go until each of their groups has enough of them."""

import numpy as np

from robustbench_rec.raw import Array


def core(columns: list[tuple[Array, Array]]) -> Array:
    """The largest set of rows in which every group of every column has as many rows as it needs, bool `[N]`.

    columns: group codes from 0 `[N]` (or `[N, m]`: a row is in m groups), and how many rows each group needs `[G]`.
    """
    kept = np.ones(len(columns[0][0]), dtype=bool)
    while len(kept):
        left = kept
        for codes, need in columns:
            enough = np.bincount(codes[left].ravel(), minlength=len(need)) >= need
            left = left & enough[codes].reshape(len(codes), -1).all(axis=1)
        if left.sum() == kept.sum():
            break
        kept = left
    return kept
