"""Attribute inference: a hidden value of a row, by trying every one and asking the model.

Fredrikson, Lantz, Jha, Lin, Page and Ristenpart, "Privacy in pharmacogenetics", USENIX Security 2014,
https://www.usenix.org/conference/usenixsecurity14/technical-sessions/presentation/fredrikson_matthew; with the
confidence in the true label in place of the rate of errors, as Mehnaz et al. do, USENIX Security 2022.

Differs from the paper: the prior of a value is not what it is in all rows but what the row's other columns and its
label tell (a random forest learnt from public rows), for without that an attack only looks good beside a worse guess
(Jayaraman and Evans, "Are attribute inference attacks just imputation?", CCS 2022). `marginal` is the paper's. Columns
of numbers are guessed as one of a few levels, which may be of several columns together.

Tags: atlas:AML.T0024, nist-ai-100-2:NISTAML.037.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Rows
from buckler.kinds import Guessed
from buckler.privacy._columns import coded, filled, hidden, imputed, values
from buckler.privacy._shadows import TINY
from buckler.target import ScoreOracle


def attribute_inference(
    oracle: ScoreOracle,
    x: Tensor,
    y: Tensor,
    *,
    public: Rows,
    columns: tuple[int, ...] | None = None,
    levels: int = 8,
    prior: Literal["imputed", "marginal"] = "imputed",
    weight: float = 1.0,
    seed: int = 0,
) -> Guessed:
    """Score every value that `columns` may hold by its prior and by how sure of the label the model is with it.

    `x` `(B, ...)` in [0, 1], of which the columns are not looked at, and `y` `(B,)`; `public` are rows of the same kind
    that are known whole. Columns are counted along a flattened row; none named means the one that varies most in
    `public`. Their values are those of `public`, or `levels` centres of them. A score is log prior + `weight` * log
    p(label); a `weight` of 0 asks nothing. Returns `attribute` `(B, V)`. Raises `ValueError` for columns that are not
    there, or fewer than two levels.
    """
    if weight < 0:
        raise ValueError(f"expected a weight of 0 or more, got {weight}")
    columns = hidden(public[0], columns)
    known = values(public[0], columns, levels)
    if prior == "imputed":
        score = imputed(public, x, y, columns, known, seed).log()
    else:
        found = torch.bincount(coded(public[0], columns, known), minlength=len(known)).double().cpu()
        score = ((found + 1) / (found + 1).sum()).log().expand(len(x), -1)
    if weight == 0:
        return {"attribute": score}
    sure = [oracle(filled(x, columns, value)).double().gather(1, y[:, None]).squeeze(1) for value in known]
    return {"attribute": score + weight * torch.stack(sure, 1).clamp_min(TINY).log().cpu()}
