"""The best matching of two sets."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def assignment(gain: Float[Tensor, "row column"]) -> Int[Tensor, " row"]:
    """The column of each row, no two the same, at which the gains add up to the most; -1 for rows left over.

    The Hungarian method, one shortest augmenting path for each row (Jonker and Volgenant 1987).

    >>> assignment(torch.tensor([[0.9, 0.8], [0.8, 0.1]]))
    tensor([1, 0])
    """
    if gain.shape[0] > gain.shape[1]:
        rows = torch.full((gain.shape[0],), -1)
        columns = assignment(gain.T)
        return rows.index_copy(0, columns, torch.arange(gain.shape[1]))
    cost = -gain.detach().double().cpu().numpy()
    n_rows, n_columns = cost.shape
    price_row, price_column = np.zeros(n_rows), np.zeros(n_columns)
    row_of = np.full(n_columns, -1)
    for start in range(n_rows):
        least, before = np.full(n_columns, np.inf), np.full(n_columns, -1)
        done = np.zeros(n_columns, dtype=bool)
        row, end, far = start, -1, 0.0
        while True:
            reach = far + cost[row] - price_row[row] - price_column
            nearer = ~done & (reach < least)
            least[nearer], before[nearer] = reach[nearer], end
            end = int(np.where(done, np.inf, least).argmin())
            far, done[end] = least[end], True
            if row_of[end] < 0:
                break
            row = row_of[end]
        price_row[start] += far
        inner = done.copy()
        inner[end] = False
        price_row[row_of[inner]] += far - least[inner]
        price_column[inner] -= far - least[inner]
        while end >= 0:
            row_of[end] = start if before[end] < 0 else row_of[before[end]]
            end = before[end]
    columns = np.full(n_rows, -1)
    matched = row_of >= 0
    columns[row_of[matched]] = np.flatnonzero(matched)
    return torch.from_numpy(columns)
