"""What tokenizers cut off a prompt is found, whatever the pipeline's limit is, and told."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from accel.pipelines.generate import generate
from accel.pipelines.inputs.binding import prompt_tokens
from accel.pipelines.inputs.taken import Parameter, Takes
from accel.pipelines.job import Job
from accel.pipelines.load import load, tiny_folder
from accel.pipelines.prompt_tokens import Cut, longest, tokenizers, watched

LETTERS = [chr(k) for k in range(ord("a"), ord("z") + 1)]


def tokenizer(length: int, *, special: bool = True, side: str = "right") -> Any:
    """A tokenizer of one letter a token, with a first and a last special one."""
    words = {word: k for k, word in enumerate(["<s>", "</s>", "<unk>", "<pad>", "user:", *LETTERS])}
    base = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        base.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=base, model_max_length=length, pad_token="<pad>", unk_token="<unk>",
        bos_token="<s>", eos_token="</s>", truncation_side=side,
    )  # fmt: skip


def pipe_of(**parts: Any) -> Any:
    return SimpleNamespace(components=parts, **parts)


def cuts_of(pipe: Any, call: Any, **prompts: str) -> list[Cut]:
    told: list[str] = []
    with watched(pipe, {k.replace("_", " "): v for k, v in prompts.items()}, told.append) as cuts:
        call(pipe)
    assert told == [str(cut) for cut in cuts]
    return cuts


def letters(count: int) -> str:
    return " ".join(LETTERS[:count])


@pytest.mark.parametrize(
    ("room", "how"),
    [
        (8, {"max_length": 10, "truncation": True}),  # two of them are special
        (10, {"max_length": 10, "truncation": True, "add_special_tokens": False}),
        (4, {"truncation": True}),  # then its own length counts
        (4, {"truncation": "longest_first", "padding": "max_length"}),
        (0, {"max_length": 1, "truncation": True}),
    ],
)
def test_what_is_over_the_limit_of_the_call_is_told(room: int, how: dict[str, Any]) -> None:
    pipe = pipe_of(tokenizer=tokenizer(6))
    for count in range(1, 15):
        cuts = cuts_of(pipe, lambda p, n=count: p.tokenizer([letters(n)], **how),
                       prompt=letters(count))  # fmt: skip
        if count <= room:
            assert not cuts
            continue
        (cut,) = cuts
        assert (cut.tokenizer, cut.what) == ("tokenizer", "prompt")
        assert (cut.tokens, cut.total) == (count - room, count)
        assert cut.text == " ".join(LETTERS[room:count])
        assert f"{count - room} of {count} tokens were cut" in str(cut) and cut.text in str(cut)


def test_a_call_without_truncation_cuts_nothing() -> None:
    pipe = pipe_of(tokenizer=tokenizer(6))
    for how in ({}, {"truncation": False}, {"truncation": "do_not_truncate"}):
        assert not cuts_of(pipe, lambda p, h=how: p.tokenizer(letters(20), **h), prompt=letters(20))


def test_every_tokenizer_has_its_own_limit() -> None:
    short, long = tokenizer(7), tokenizer(100)
    processor = SimpleNamespace(tokenizer=tokenizer(9))
    pipe = pipe_of(tokenizer=short, tokenizer_2=long, tokenizer_3=None, processor=processor,
                   tokenizer_4=short, vae=object())  # fmt: skip
    assert list(tokenizers(pipe)) == ["tokenizer", "tokenizer_2", "processor.tokenizer"]

    def call(p: Any) -> None:
        for one in (p.tokenizer, p.tokenizer_2, p.processor.tokenizer):
            for _ in range(2):  # a second call tells nothing new
                one(text=[letters(12)], truncation=True)

    cuts = cuts_of(pipe, call, prompt=letters(12))
    assert [(cut.tokenizer, cut.tokens) for cut in cuts] == [
        ("tokenizer", 7), ("processor.tokenizer", 5),
    ]  # fmt: skip


def test_the_call_gets_the_length_of_the_longest_tokenizer() -> None:
    length = Parameter("max_sequence_length", False, 256)
    accepted = Takes("p", {length.name: length}, {})
    clip, t5, big = tokenizer(77), tokenizer(512), tokenizer(10**30)
    for parts, expected in (
        ({"tokenizer": clip}, 77), ({"tokenizer": clip, "tokenizer_2": t5}, 256),
        ({"tokenizer": clip, "tokenizer_2": clip, "tokenizer_3": tokenizer(128)}, 128),
        ({"tokenizer": big}, 256), ({}, None), ({"tokenizer": None}, None),
    ):  # fmt: skip
        assert prompt_tokens(pipe_of(**parts), accepted) == expected
    assert (
        prompt_tokens(pipe_of(tokenizer=clip), Takes("p", {}, {})) is None
        and longest(pipe_of()) is None
    )


def test_prompts_are_told_apart_and_templates_do_not_count() -> None:
    pipe = pipe_of(tokenizer=tokenizer(100, special=False))
    positive, negative = letters(9), "z y x w v u t"

    def both(p: Any) -> None:
        p.tokenizer([negative, positive], max_length=6, truncation=True)

    cuts = cuts_of(pipe, both, prompt=positive, negative_prompt=negative)
    assert [(c.what, c.text) for c in cuts] == [("negative prompt", "t"), ("prompt", "g h i")]

    def in_template(room: int) -> list[Cut]:
        text = [f"user: {positive} user: user:"]
        how = {"max_length": room, "truncation": True}
        return cuts_of(pipe, lambda p: p.tokenizer(text, **how), prompt=positive)

    assert not in_template(12) and not in_template(11) and not in_template(10)
    (cut,) = in_template(9)
    assert cut.text.startswith("i") and cut.what == "prompt"
    odd = cuts_of(pipe, lambda p: p.tokenizer("q r s", max_length=1, truncation=True), prompt="a")
    assert [(c.what, c.text) for c in odd] == [("text", "r s")]


def test_a_tokenizer_that_cuts_at_the_left() -> None:
    pipe = pipe_of(tokenizer=tokenizer(6, side="left"))
    (cut,) = cuts_of(pipe, lambda p: p.tokenizer(letters(7), truncation=True), prompt=letters(7))
    assert cut.text == "a b c" and cut.tokens == 3


def test_tokenizers_are_as_before_and_give_what_they_gave() -> None:
    one = tokenizer(6)
    pipe, cls = pipe_of(tokenizer=one), type(one)
    plain = one([letters(9)], truncation=True, return_attention_mask=True)
    with watched(pipe, {}, lambda text: None):
        assert type(one).__name__ == cls.__name__ and isinstance(one, cls)
        assert one([letters(9)], truncation=True, return_attention_mask=True) == plain
    assert type(one) is cls
    with pytest.raises(KeyError), watched(pipe, {}, lambda text: None):
        raise KeyError("the pipeline failed")
    assert type(one) is cls


def test_counting_never_ends_a_run(caplog: pytest.LogCaptureFixture) -> None:
    one = tokenizer(6)
    one.num_special_tokens_to_add = None
    with caplog.at_level(logging.WARNING, "accel"):
        assert not cuts_of(pipe_of(tokenizer=one), lambda p: p.tokenizer("a", truncation=True))
    assert "whether tokenizer cut the prompt is not known" in caplog.text


def test_a_long_text_is_told_by_both_its_ends() -> None:
    cut = Cut("tokenizer", "prompt", 900, 1000, "start " + "x" * 5000 + " end")
    assert "start " in str(cut) and str(cut).endswith(' end"') and len(str(cut)) < 400


@pytest.mark.slow
@pytest.mark.skipif(
    not (tiny_folder() / "model_index.json").is_file(), reason="no samples/tiny-wan"
)
def test_two_prompts_with_one_beginning(caplog: pytest.LogCaptureFixture) -> None:
    pipe = load("tiny", device="cpu")
    start = "a red circle on a striped blue background " * 6
    how: dict[str, Any] = {"frames": 5, "steps": 1, "width": 64, "height": 64, "preset": None}
    ends = ("and a green square", "and a yellow crescent")
    with caplog.at_level(logging.WARNING, "accel"):
        first, second = (generate(pipe, Job(start + end, **how)) for end in ends)
    assert np.array_equal(first.frames, second.frames)  # and that is told:
    for result, end in zip((first, second), ends, strict=True):
        (cut,) = result.cuts
        assert cut.text.endswith(end) and end in caplog.text
    told: list[str] = []
    whole = generate(pipe, Job("a red circle", **how), on_cut=told.append)
    assert whole.cuts == () and not told
