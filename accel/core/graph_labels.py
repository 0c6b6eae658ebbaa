"""Name an object in graphs of ``torch.compile`` by a tensor.

A tensor is an input of a graph where a number would be part of it, so equal parts of a model share
one graph. Objects are held weakly: a graph can outlive what it calls.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

_numbers = itertools.count()
_named: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def label(thing: Any) -> Tensor:
    """Return the name of ``thing``, an int64 tensor []."""
    number = next(_numbers)
    _named[number] = thing
    return torch.tensor(number, dtype=torch.int64, device="cpu")


def labeled(name: Tensor) -> Any:
    """Return what has this name, None if it is gone."""
    return _named.get(int(name))
