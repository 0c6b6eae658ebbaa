"""A path once given to a job stays that job's, and nothing finished is replaced unless asked."""

from __future__ import annotations

import json
import os
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.pipelines.batch.identity import job_id
from accel.pipelines.batch.items import Item, items
from accel.pipelines.batch.lease import lease
from accel.pipelines.batch.naming import Naming
from accel.pipelines.batch.output import Output, copy_of
from accel.pipelines.batch.owners import paths_of
from accel.pipelines.job import Job, JobError
from accel.pipelines.paths import LONGEST, folded, safe_name
from accel.pipelines.video import read_comment

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)
SIDECAR = {"peak_bytes": 1, "seconds": 1.0, "frames": 2, "memory": [], "comparison": None}


class Queue:
    """Names jobs as ``accel render`` does, and finishes them without a model."""

    def __init__(self, folder: Path) -> None:
        self.file, self.out = folder / "jobs.json", folder / "out"
        self.out.mkdir()

    def name(self, *jobs: dict[str, Any], rows: Any = (), overwrite: bool = False) -> list[Item]:
        self.file.write_text(json.dumps({"jobs": [{"prompt": "p", **job} for job in jobs]}))
        found = list(items([self.file], (), Naming(self.out, rows, overwrite)))
        assert all(isinstance(item, Item) for item in found)
        return [item for item in found if isinstance(item, Item)]

    def finish(self, *jobs: dict[str, Any], overwrite: bool = False) -> list[Item]:
        found = self.name(*jobs, overwrite=overwrite)
        for item in found:
            self.output(item, overwrite).write(FRAMES, item.job, item.id, SIDECAR)
        return found

    def output(self, item: Item, overwrite: bool = False) -> Output:
        return Output(self.out, item.name, item.job.format, overwrite)

    def content(self) -> dict[str, bytes]:
        files = (path for path in self.out.rglob("*") if path.is_file())
        return {str(path.relative_to(self.out)): path.read_bytes() for path in files}


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


def names(found: list[Item]) -> list[str]:
    return [item.name for item in found]


COLLIDING = [
    ({"name": "b.mp4", "format": "png"}, {"name": "b"}),
    ({"name": "b.mkv", "format": "png"}, {"name": "b", "format": "lossless"}),
    ({"name": "b.json", "format": "png"}, {"name": "b", "format": "gif"}),
    ({"name": "b", "format": "png"}, {"name": "b", "format": "webm"}),
    ({"name": "Hero"}, {"name": "hero", "format": "gif"}),
    ({"name": "straße"}, {"name": "STRASSE"}),
    ({"name": "caf\u00e9"}, {"name": "cafe\u0301"}),
    ({"name": "Caf\u00c9", "format": "gif"}, {"name": "cafe\u0301", "format": "webm"}),
    ({"name": "x" * 300}, {"name": "x" * 301}),
    ({"name": "雲" * 120}, {"name": "雲" * 119}),
]


@pytest.mark.parametrize(("one", "two"), [*COLLIDING, *((b, a) for a, b in COLLIDING)])
def test_names_differ_as_paths_in_one_queue_and_beside_what_is_finished(
    one: dict[str, Any], two: dict[str, Any], queue: Queue
) -> None:
    both = {**one, "seed": 1}, {**two, "seed": 2}
    first, second = queue.name(*both)
    paths = [{folded(path) for path in paths_of(i.name, i.job.format)} for i in (first, second)]
    assert not paths[0] & paths[1]
    queue.finish(both[0])
    before = queue.content()
    (later,) = queue.finish(both[1])
    assert later.name == second.name and before.items() <= queue.content().items()
    assert (
        names(queue.name(*both)) == names(queue.name(*both[::-1]))[::-1] == [first.name, later.name]
    )


@pytest.mark.parametrize("name", ["differences", "Differences"])
def test_a_folder_of_the_page_is_no_ones_name(name: str, queue: Queue) -> None:
    (item,) = queue.name({"name": name, "format": "png"})
    assert item.name == f"{name}-{item.id[:8]}"


def test_an_edited_job_gets_a_name_of_its_own_and_keeps_it(queue: Queue) -> None:
    queue.finish({"name": "hero", "seed": 1})
    before = queue.content()
    (edited,) = queue.finish({"name": "hero", "seed": 2})
    assert edited.name == f"hero-{edited.id[:8]}" and "--overwrite" in edited.note
    assert before.items() <= queue.content().items()
    (again,) = queue.name({"name": "hero", "seed": 2})
    assert again.name == edited.name and not queue.output(again).why_not_done(again.id)
    (first,) = queue.name({"name": "hero", "seed": 1})
    assert first.name == "hero" and not first.note


def test_a_video_does_not_replace_itself(queue: Queue) -> None:
    queue.finish({"name": "hero", "seed": 1}, {"name": "frames", "format": "png"})
    for source in ("hero.mp4", "frames"):
        path = queue.out / source
        (same,) = items([path], (), Naming(queue.out))
        (other,) = items([path], [("seed", 9)], Naming(queue.out))
        assert isinstance(same, Item) and isinstance(other, Item)
        assert not queue.output(same).why_not_done(same.id)
        assert other.name == f"{path.stem}-{other.id[:8]}"


@pytest.mark.parametrize("named", [{"name": "shot"}, {}])
def test_order_and_new_jobs_take_nothing_over(named: dict[str, str], queue: Queue) -> None:
    jobs = [{**named, "steps": steps} for steps in (1, 2, 3)]
    was = {item.id: item.name for item in queue.finish(*jobs)}
    assert len(set(was.values())) == 3
    before = queue.content()
    for order in (jobs[::-1], [{**named, "steps": 4}, *jobs], [*jobs[1:], {**named, "steps": 5}]):
        found = queue.finish(*order)  # nothing of ``.accel`` is left
        assert all(was.get(item.id, item.name) == item.name for item in found)
        assert before.items() <= queue.content().items()


def test_what_is_not_finished_keeps_its_name_while_a_job_file_asks_for_it(queue: Queue) -> None:
    job = json.dumps({"format": "mp4"})
    (old,) = queue.name({"name": "shot", "seed": 1})
    row = {"name": "shot", "id": old.id, "state": "pending", "job": job}
    both = queue.name({"name": "shot", "seed": 2}, {"name": "shot", "seed": 1}, rows=[row])
    assert names(both) == [f"shot-{both[0].id[:8]}", "shot"]
    assert names(queue.name({"name": "shot", "seed": 2}, rows=[row])) == ["shot"]
    renamed = queue.name({"name": "shot", "seed": 2}, {"name": "x", "seed": 1}, rows=[row])
    assert names(renamed) == ["shot", "x"]


def test_overwrite_replaces_what_no_job_file_asks_for(queue: Queue) -> None:
    queue.finish({"name": "hero", "seed": 1, "format": "webm"})
    (edited,) = queue.finish({"name": "hero", "seed": 2}, overwrite=True)
    assert edited.name == "hero" and sorted(queue.content()) == ["hero.json", "hero.mp4"]
    both = queue.finish({"name": "hero", "seed": 3}, {"name": "hero", "seed": 2}, overwrite=True)
    assert names(both) == [f"hero-{both[0].id[:8]}", "hero"]
    (alone,) = queue.name({"name": "hero", "seed": 3}, overwrite=True)
    assert (alone.name, alone.twin) == ("hero", both[0].name)  # copied from there


def test_overwrite_leaves_other_names_and_other_people_alone(queue: Queue) -> None:
    queue.finish({"name": "b.mp4", "format": "png"})
    (other,) = queue.name({"name": "b", "seed": 2}, overwrite=True)
    assert other.name == f"b-{other.id[:8]}"
    (queue.out / "mine.mp4").write_text("holiday")
    (queue.out / "link.json").symlink_to("nowhere")
    os.mkfifo(queue.out / "pipe.mp4")
    for name in ("mine", "link", "pipe"):
        (item,) = queue.name({"name": name}, overwrite=True)
        with pytest.raises(JobError, match="is not from accel render; move it or rename"):
            queue.output(item, True).check_ours(item.id)


def test_no_file_of_another_job_is_written_over_whatever_name_is_given(queue: Queue) -> None:
    (first,) = queue.finish({"name": "hero", "seed": 1})
    before, other = queue.content(), Job("p", seed=2, name="hero").resolved()
    output = Output(queue.out, "hero", "mp4")
    for write in (
        lambda: output.write(FRAMES, other, job_id(other), SIDECAR),
        lambda: output.take({"": b"x"}, other, job_id(other), SIDECAR),
        lambda: Output(queue.out, "hero.mp4", "png").write(FRAMES, other, "1f", SIDECAR),
    ):
        with pytest.raises(JobError, match=r"finished video of another job.*--overwrite"):
            write()
    assert queue.content() == before
    (queue.out / "hero.json").unlink()  # the video still says whose it is
    with pytest.raises(JobError, match="another job"):
        output.check_ours(job_id(other))
    output.check_ours(first.id)


def test_a_finished_video_of_another_name_is_copied(queue: Queue) -> None:
    (first,) = queue.finish({"name": "one"})
    row = {"name": "one", "id": first.id, "state": "done", "job": "{}"}
    (second,) = queue.name({"name": "two"}, rows=[row])
    assert (second.name, second.twin) == ("two", "one")
    pair = queue.output(first), queue.output(second)
    assert not copy_of(*pair, second.job, second.id, compare=True)
    assert copy_of(*pair, second.job, second.id)
    assert (queue.out / "one.mp4").read_bytes() == (queue.out / "two.mp4").read_bytes()
    assert not copy_of(pair[0], Output(queue.out, "three", "mp4"), second.job, "another id")
    (unnamed,) = queue.name({}, rows=[row])
    assert unnamed.name == "one" and read_comment(queue.out / "one.mp4")


@pytest.mark.parametrize(
    "words",
    [
        "雲" * 120,
        "é" * 200,
        "a" * 500,
        "\U0001f3ac" * 99,
        "ab雲" * 80,
        "हिन्दी" * 40,
    ],
)
def test_names_fit_any_file_system(words: str, tmp_path: Path) -> None:
    name = safe_name(words)
    assert len(name.encode()) <= LONGEST and len(name) <= 120 and "\ufffd" not in name
    job = Job("p", name=words)
    longest = f".{job.file_name}-12345678-reference.json.accel-part"
    (tmp_path / longest).write_text("")
    assert unicodedata.normalize("NFC", job.file_name) == job.file_name
    assert safe_name(name) == name
    shorter = [len(safe_name(words[:n])) for n in range(len(words))]
    assert all(a <= b for a, b in pairwise(shorter))


def test_what_another_process_renders_now_keeps_its_name(queue: Queue) -> None:
    (other,) = queue.name({"name": "shot", "seed": 1})
    job = json.dumps({"format": "mp4"})
    row = {"name": "shot", "id": other.id, "state": "running", "job": job}
    with lease(queue.output(other).lease):
        (mine,) = queue.name({"name": "shot", "seed": 2}, rows=[row])
        (same,) = queue.name({"name": "shot", "seed": 1}, rows=[row])
    assert (mine.name, same.name) == (f"shot-{mine.id[:8]}", "shot")
    (after,) = queue.name({"name": "shot", "seed": 2}, rows=[row])
    assert after.name == "shot"


def test_a_queue_that_stays_open_frees_the_names_of_what_leaves_it(queue: Queue) -> None:
    naming = Naming(queue.out)
    jobs = [Job("p", seed=seed, name="shot").resolved() for seed in (1, 2)]
    first, second = (naming.name(job, job_id(job)) for job in jobs)
    assert first is not None and second is not None and first.name == "shot" != second.name
    assert naming.name(jobs[0], job_id(jobs[0])) is None
    naming.forget("shot")
    third = naming.name(Job("p", seed=3, name="shot").resolved(), "3f" * 32)
    assert third is not None and third.name == "shot"
    Output(queue.out, "late", "mp4").write(FRAMES, jobs[0], "other", SIDECAR)
    late = naming.name(Job("p", seed=4, name="late").resolved(), "4f" * 32)
    assert late is not None and late.name == "late-4f4f4f4f"  # it came after the first look
