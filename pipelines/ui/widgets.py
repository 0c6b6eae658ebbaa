"""gradio, imported without writing its editor stubs anew.

Each import of gradio reads, parses and compares a ``.pyi`` file for each of its components, which
is more than half of its time. It leaves out classes whose source is not in a file; while it is
imported here, its own classes and ours say so.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_stubs() -> Iterator[None]:
    original = inspect.getfile

    def getfile(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith(("gradio.", __name__)):
            raise OSError("no source asked for")
        return original(thing)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = original


with _without_stubs():
    import gradio as gr

    class Limit(gr.Slider):
        """Make a slider that takes a number typed beyond an end as that end.

        gr.Slider reports an error there, but who allows more than can be needed allows what is
        needed.
        """

        is_template = True  # the browser draws it as a gr.Slider

        def preprocess(self, payload: float) -> float:
            """Return the value a handler gets."""
            return super().preprocess(min(max(payload, self.minimum), self.maximum))

    class Field(gr.Number):
        """Make a number field that may stay empty, which is None for a handler.

        The browser draws a gr.Number without a value as 0 where it is not drawn at once, as in a
        tab or in a part that is folded up, and sends that 0; with an empty text it does not.
        """

        is_template = True

        def preprocess(self, payload: Any) -> float | None:
            """Return the value a handler gets."""
            return None if payload in (None, "") else super().preprocess(payload)

        def postprocess(self, value: Any) -> Any:
            """Return what the browser gets."""
            return "" if value is None else super().postprocess(value)

    class Picture(gr.Image):
        """Make a place for a picture, whose handler opens the file itself.

        gr.Image opens it before a handler is called, and shows a visitor what Pillow says.
        """

        is_template = True

        def preprocess(self, payload: Any) -> str | None:
            """Return the path of the upload that a handler gets."""
            return None if payload is None else payload.path


__all__ = ["Field", "Limit", "Picture", "gr"]
