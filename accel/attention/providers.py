"""Who can compute attention here: every backend of diffusers' registry, each with what it claims.

Names are diffusers' own: ``native`` is torch's choice among its kernels, ``_native_cudnn`` and its
like one of them, ``sage``, ``flash``, ``xformers`` and so on are packages, names with ``hub`` are
kernels from a hub, and ``accel`` is ours. Nothing is fetched unless the user chose that backend or
the plan names it. A backend that is not known here claims to be exact, and is measured like all
others (``accel/attention/trial.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.attention import sdpa
from accel.attention.call import Call
from accel.core.described import first_line
from accel.core.diffusers_providers import NATIVE as NATIVE
from accel.core.diffusers_providers import Backend, backend, backends, call_arguments

OURS = "accel"
# Reasons that many providers share and that are not about a call.
NOT_INSTALLED, NOT_NAMED = "not installed", "from a hub, and the plan does not name it"
COMMON = NOT_INSTALLED, NOT_NAMED
# Precision of the products of what is not exact, by the start of a name, the longest first.
CLAIMS = {
    "sage_blackwell": "int4",  # SageAttention3: FP4 (arXiv 2505.11594)
    "_sage": "int8",
    "sage": "int8",  # SageAttention2: INT8 and FP8 or FP16 (arXiv 2411.10958)
    "sparge": "sparse",
}
# From the most exact on; a plan's precision allows what stands before it and itself. Sparse
# attention leaves keys out, so it has to be named.
CLASSES = ("full", "int8", "int6", "int4")
# Slower than torch's own choice wherever that works, and in need of a matrix [Tq, Tk].
ONLY_BY_NAME = ("_native_math", "flex")
# Torch's own kernels for cards: on the CPU it has one, which is its own choice.
OF_CARDS = ("_native_cudnn", "_native_efficient", "_native_flash")


@dataclass(frozen=True)
class Provider:
    """A backend that can compute a call instead of torch's own choice."""

    backend: Backend
    claim: str

    @property
    def name(self) -> str:
        """Its name in diffusers."""
        return self.backend.name

    def why_not(self, call: Call) -> str:
        """Return why it does not take a call, as far as that is known before it runs, or ""."""
        if call.query.dim() != 4:
            return f"{call.query.dim()} dimensions, need [B, H, T, D]"
        try:
            arguments = _arguments(self.backend, call)
            for check in self.backend.checks:
                check(**arguments)
        except Exception as error:  # of whatever kind somebody's check raises
            return first_line(error) or type(error).__name__
        return ""

    def run(self, call: Call) -> Tensor:
        """Compute a call; result [B, H, Tq, Dv].

        Raises what the backend raises, and ValueError for a result that is no such tensor.
        """
        if not self.backend.fetched():
            self.backend.fetch()
        with sdpa.unseen():  # some of them call torch's attention in turn
            out = self.backend.function(**_arguments(self.backend, call))
        if isinstance(out, tuple):
            out = out[0]
        shape = (*call.query.shape[:-1], call.value.shape[-1])
        if not isinstance(out, Tensor) or out.transpose(1, 2).shape != torch.Size(shape):
            raise ValueError(f"gave no tensor of shape {shape}")
        return out.transpose(1, 2)


def _arguments(backend: Backend, call: Call) -> dict[str, object]:
    return call_arguments(
        backend, call.query, call.key, call.value, call.attn_mask, call.is_causal, call.scale,
        call.enable_gqa,
    )  # fmt: skip


def claim_of(name: str) -> str:
    """Return the precision that a backend claims, "full" if nothing else is known."""
    return next((what for start, what in CLAIMS.items() if name.startswith(start)), "full")


def provider(name: str) -> Provider | None:
    """Return a registered backend as a provider, None if there is none of that name."""
    found = backend(name)
    return None if found is None else Provider(found, claim_of(name))


def candidates(
    names: tuple[str, ...], baseline: str, device: torch.device
) -> tuple[list[Provider], dict[str, str]]:
    """Return what may be tried beside ``baseline``, and for what is left out the reason.

    ``names``: those that a plan allows; () for all that are installed and exact or quantized.
    """
    found, out = [], {}
    for name in backends():
        if name in (baseline, NATIVE) or name.startswith(OURS):
            continue
        if names and name not in names:
            continue
        if not names and (name in ONLY_BY_NAME or (device.type == "cpu" and name in OF_CARDS)):
            continue
        one = provider(name)
        assert one is not None
        if not names and one.backend.remote and not one.backend.fetched():
            out[name] = NOT_NAMED
        elif not names and one.claim not in CLASSES:
            out[name] = f"{one.claim} attention has to be named by the plan"
        elif missing := one.backend.missing():
            out[name] = missing if names else NOT_INSTALLED
        else:
            found.append(one)
    return found, out


def absent(why_not: Iterable[Mapping[str, str]]) -> list[str]:
    """Return a line for each of ``COMMON``, of the providers that several calls had it for."""
    lines = []
    for common in COMMON:
        names = {name for reasons in why_not for name, why in reasons.items() if why == common}
        lines += [f"{common}: {', '.join(sorted(names))}"] if names else []
    return lines


def check_names(names: tuple[str, ...]) -> None:
    """Raise ValueError for a name of ``AttentionConfig.providers`` that nothing here has."""
    known = [NATIVE, OURS, *(name for name in backends() if not name.startswith(OURS))]
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"attention providers {wrong} are not known; known: {known}")
