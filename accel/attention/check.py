"""Check of a quantized result: its error on sampled rows, and how much its precision may have.

A mean over all heads and rows hides a head that eight bits are too few for, such as one whose keys
have a loud channel, and a head's own mean hides an eighth of its rows, such as a text's. So every
head is judged by its own output, and by the row that an eighth of its rows exceed.

The limits follow the precision: four times its error on normal data. For keys, queries and values
from N(0, 1) the worst of eight heads has 0.026 in INT8, 0.045 in INT6 and 0.164 in INT4 (head sizes
40 to 128, 128 to 4,096 keys). Dominating keys (sinks) cost INT8 up to 0.05
(``kernels/reference_sinks.py``), peaked attention and heavy tails up to 0.05, 0.13 and 0.41.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.attention.call import TINY, Call, cosine
from accel.config import AttentionConfig

NORMAL = {"int8": 0.026, "int6": 0.045, "int4": 0.164}  # relative L1 of the worst head on N(0, 1)
LIMITS = {precision: round(4 * error, 2) for precision, error in NORMAL.items()}
# Of full precision by another kernel.
EXACT = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
ROW = 2.0  # an eighth of a head's rows may be this many times over the limit, no more


@dataclass(frozen=True)
class Sample:
    """Some query rows of a call, by ``index``, and their result at full precision."""

    index: Tensor
    exact: Tensor

    def error(self, out: Tensor) -> tuple[float, float]:
        """Return the worst head's error in a call's result ``out``, and the cosine over all heads.

        A head's error is its relative L1 error, or a ``ROW``-th of the one that an eighth of its
        rows reach, if that is more.
        """
        error, similar = self.values(out).tolist()
        return error, similar

    def values(self, out: Tensor) -> Tensor:
        """Return both, fp64 [2], without reading them."""
        mine, exact = out[..., self.index, :].double(), self.exact.double()
        wrong, size = (mine - exact).abs().sum(-1), exact.abs().sum(-1)  # [B, H, rows]
        heads = wrong.sum(-1) / size.sum(-1).clamp_min(TINY)
        rows = (wrong / size.clamp_min(TINY)).sort(-1, descending=True).values
        eighth = rows[..., (rows.shape[-1] - 1) // 8] / ROW
        return torch.stack((torch.maximum(heads, eighth).max(), cosine(mine, exact)))


def sample(call: Call, rows: int) -> Sample:
    """Return ``rows`` evenly spread query rows, the first and the last among them."""
    index = spread(call.query.shape[-2], rows, call.query.device)
    return Sample(index, call.at(index))


def spread(tokens: int, rows: int, device: torch.device) -> Tensor:
    """Return the numbers of at most ``rows`` evenly spread tokens, int64 [rows]."""
    ends = 0, tokens - 1
    return torch.linspace(*ends, min(rows, tokens), dtype=torch.float32, device=device).long()


def limit(config: AttentionConfig, precision: str, dtype: torch.dtype = torch.float32) -> float:
    """Return the error that a result in ``precision`` may have; of "full" by its dtype."""
    if precision == "full":
        return EXACT[dtype]
    return LIMITS[precision] if config.max_error is None else config.max_error
