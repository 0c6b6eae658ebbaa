"""What the tokenizers of a pipeline cut off a prompt, seen where it happens.

Pipelines bound a prompt in many ways: by an argument of the call, by the tokenizer, less what a
template takes, and after cleaning it. So the tokenizers are watched while the pipeline runs: what
each of them was given, and how much of it it was told to keep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from accel.core.run_log import logger

_SHOWN = 100  # characters at both ends of what was cut, at most


@dataclass(frozen=True)
class Cut:
    """What one tokenizer did not take.

    ``what``: prompt or negative prompt; ``tokens`` of ``total`` were cut, special ones not counted;
    ``text``: what they said.
    """

    tokenizer: str
    what: str
    tokens: int
    total: int
    text: str

    def __str__(self) -> str:
        text = self.text
        if len(text) > 2 * _SHOWN:
            text = f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
        return (
            f"the {self.what} is too long for {self.tokenizer}: {self.tokens} of {self.total} "
            f'tokens were cut and have no effect: "{text}"'
        )


def tokenizers(pipe: Any) -> dict[str, Any]:
    """Return the tokenizers of a pipeline by name, those inside of processors too."""
    found: dict[str, Any] = {}
    for name, part in getattr(pipe, "components", {}).items():
        inner = getattr(part, "tokenizer", None)
        for label, one in ((name, part), (f"{name}.tokenizer", inner)):
            known = any(one is other for other in found.values())
            if callable(one) and hasattr(one, "model_max_length") and not known:
                found[label] = one
    return found


def longest(pipe: Any) -> int | None:
    """Return how many tokens the most patient tokenizer of a pipeline takes; None if unknown."""
    lengths = [one.model_max_length for one in tokenizers(pipe).values()]
    known = [length for length in lengths if isinstance(length, int)]
    return max(known, default=None)


@contextmanager
def watched(
    pipe: Any, prompts: Mapping[str, str], tell: Callable[[str], None]
) -> Iterator[list[Cut]]:
    """Watch the tokenizers of ``pipe``; the list fills with what they cut, and ``tell`` hears it.

    ``prompts``: what the pipeline is given, by what it is called in the message.
    """
    cuts: list[Cut] = []

    def note(name: str, tokenizer: Any, call: Callable, text: Any, how: Mapping[str, Any]) -> None:
        try:
            for cut in _cuts(name, tokenizer, call, text, how, prompts):
                if cut not in cuts:
                    cuts.append(cut)
                    tell(str(cut))
        except Exception as error:  # counting must not end the run
            logger.warning("whether %s cut the prompt is not known: %s", name, error)

    with ExitStack() as undo:
        for name, tokenizer in tokenizers(pipe).items():
            undo.enter_context(watching(name, tokenizer, note))
        yield cuts


@contextmanager
def watching(name: str, tokenizer: Any, note: Callable) -> Iterator[None]:
    """Give a tokenizer a class of its own for a while: Python looks for ``__call__`` there."""
    cls = type(tokenizer)

    def call(self: Any, text: Any = None, *args: Any, **how: Any) -> Any:
        found = cls.__call__(self, text, *args, **how)
        note(name, self, cls.__call__, text, how)
        return found

    tokenizer.__class__ = type(cls.__name__, (cls,), {"__call__": call, "__doc__": cls.__doc__})
    try:
        yield
    finally:
        tokenizer.__class__ = cls


def _cuts(
    name: str,
    tokenizer: Any,
    call: Callable,
    text: Any,
    how: Mapping[str, Any],
    prompts: Mapping[str, str],
) -> Iterator[Cut]:
    """Yield what a call of a tokenizer cut off the texts that it was given."""
    if how.get("truncation") in (None, False, "do_not_truncate"):
        return
    room = how.get("max_length") or tokenizer.model_max_length
    if how.get("add_special_tokens", True):
        room -= tokenizer.num_special_tokens_to_add()
    room = max(room, 0)
    for one in _texts(text):
        ids = call(tokenizer, one, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= room:
            continue
        left = getattr(tokenizer, "truncation_side", "right") == "left"
        at = len(ids) - room if left else room
        kept, gone = (ids[at:], ids[:at]) if left else (ids[:at], ids[at:])
        what = _which(one, prompts)
        if what and _bare(prompts[what]) in _bare(tokenizer.decode(kept)):
            continue  # only the end of a template is gone
        lost = tokenizer.decode(gone, skip_special_tokens=True).strip()
        yield Cut(name, what or "text", len(gone), len(ids), lost)


def _texts(text: Any) -> Sequence[str]:
    given = text if isinstance(text, (list, tuple)) else [text]
    return [one for one in given if isinstance(one, str)]


def _which(text: str, prompts: Mapping[str, str]) -> str:
    """Return which prompt a text holds, the longest of those it may be; "" if none."""
    bare = _bare(text)
    held = [what for what, prompt in prompts.items() if prompt and _bare(prompt) in bare]
    return max(held, key=lambda what: len(prompts[what]), default="")


def _bare(text: str) -> str:
    """Return the letters alone: pipelines clean a prompt, and tokenizers change its spaces."""
    return re.sub(r"\W+", "", text).casefold()
