"""HTML for the page, from what the server knows.

Every text from outside is escaped here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from accel.pipelines.batch.events import Part
from accel.pipelines.job import Job
from accel.pipelines.ui.entry import Entry, EntryState
from accel.pipelines.ui.finished import Finished, changed_at
from accel.pipelines.ui.studio import Studio
from accel.pipelines.video import files_of

T = TypeVar("T")
PLAYABLE = ("mp4", "webm")  # what browsers play
_FAILURES = 3  # shown on the first tab, at most
_NOTES = 20  # on files that are left out, at most
_LONG = 500  # characters of a message, at most
_BUTTONS = {
    EntryState.WAITING: (
        ("up", "↑", "earlier"), ("down", "↓", "later"), ("first", "⤒", "next in line"),
        ("stop", "Stop", "set aside"), ("remove", "✕", "remove"),
    ),
    EntryState.RUNNING: (("stop", "Stop", "stop after this step; the steps done are kept"),),
    EntryState.STOPPED: (("retry", "Go on", "from the last saved step"), ("remove", "✕", "remove")),
    EntryState.FAILED: (("retry", "Retry", "try again"), ("remove", "✕", "remove")),
}  # fmt: skip


def file_url(studio: Studio, path: Path) -> str:
    """Return where the page finds a file of the output folder.

    The time of its last change keeps a browser from showing an older one.
    """
    return f"{studio.root}/gradio_api/file={quote(str(path))}?v={changed_at(path)}"


def button(what: str, name: str, text: str, title: str) -> str:
    """Return a button that ``actions.js`` turns into the event ``act``."""
    return (
        f'<button type="button" data-act="{what}" data-name="{escape(name)}" '
        f'title="{escape(title)}" aria-label="{escape(f"{title}: {name}")}">{text}</button>'
    )


def problem(text: str) -> str:
    """Return what is wrong, in place."""
    return f'<p class="bad" role="alert">{escape(text)}</p>'


def each(
    things: Iterable[T], draw: Callable[[T], str], name: Callable[[T], str], wrap: str = "{}"
) -> list[str]:
    """Draw every thing of a list; one that cannot be drawn says so in its place.

    ``wrap``: what stands around that, such as a row of a table.
    """
    drawn = []
    for thing in things:
        try:
            drawn.append(draw(thing))
        except Exception as error:  # one odd thing must not end the list, or all that follows
            text = f"{name(thing)} cannot be shown: {type(error).__name__}: {error}"
            drawn.append(wrap.format(problem(text[:_LONG])))
    return drawn


def now(studio: Studio) -> str:
    """Return what runs (preview, step bar with the time left, a stop button) and what failed."""
    with studio.queue.lock:
        entries = studio.queue.order()
        notice, paused = studio.queue.notice, studio.queue.paused
    running = [entry for entry in entries if entry.state == EntryState.RUNNING]
    waiting = sum(entry.state == EntryState.WAITING for entry in entries)
    failed = sum(entry.state == EntryState.FAILED for entry in entries)
    news = sorted((entry for entry in entries if entry.failure), key=_failed_at, reverse=True)
    news = news[:_FAILURES]
    parts = [problem(notice)] if notice else []
    parts += each(running, _running, _name)
    if not running and (paused or waiting or not news):
        text = "Paused." if paused else "Starting." if waiting else "Nothing is running."
        parts.append(f'<p class="quiet">{text}</p>')
    if waiting:
        parts.append(f'<p class="quiet">{waiting} waiting in the queue.</p>')
    if failed > len(news):
        others = f"{failed - len(news)} {'more ' if news else ''}failed"
        parts.append(f'<p class="quiet">{others}; see the tab Queue and gallery.</p>')
    parts += each(news, lambda entry: _failed(entry, alert=not running), _name)
    if news:  # last, right above the video
        parts.append(_what_is_below(studio, news[0]))
    return f'<div class="now">{"".join(parts)}</div>'


def _name(entry: Entry) -> str:
    return entry.item.name


def _failed_at(entry: Entry) -> float:
    return entry.failure.time if entry.failure else 0.0


def _failed(entry: Entry, *, alert: bool) -> str:
    """Return why a job failed.

    ``alert``: a screen reader says it at once, which it would at every step of a job that runs.
    """
    name, role = entry.item.name, ' role="alert"' if alert else ""
    return (
        f'<div class="failure"{role}><p class="bad"><b>{escape(name)} failed:</b> '
        f"{escape(entry.error[:_LONG])}</p>{button('retry', name, 'Retry', 'try again')} "
        f"{button('dismiss', name, 'Dismiss', 'show this no longer')}</div>"
    )


def _what_is_below(studio: Studio, failed: Entry) -> str:
    """Say that the newest video is not the one that failed."""
    video = newest(studio)
    if video is None:
        return ""
    what = "an older one" if video.changed < 1e9 * _failed_at(failed) else "another job's"
    return f'<p class="quiet">The video below, {escape(video.name)}, is {what}.</p>'


def _running(entry: Entry) -> str:
    name = entry.item.name
    if not entry.steps:
        text, share = "loading the model", 0.0
    else:
        part = "reference, " if entry.part == Part.UNACCELERATED else ""
        left = "" if entry.eta is None else f", {_seconds(entry.eta)} left"
        text, share = f"{part}step {entry.step} of {entry.steps}{left}", entry.step / entry.steps
    picture = '<div class="preview empty"></div>'
    if entry.jpeg:
        data = base64.b64encode(entry.jpeg).decode()
        url = f"data:image/jpeg;base64,{data}"
        picture = f'<img class="preview" alt="preview of {escape(name)}" src="{url}">'
    return (
        f'<div class="running">{picture}<div class="grow"><b>{escape(name)}</b>'
        f'<progress max="1" value="{share:.3f}" aria-label="steps done"></progress>'
        f"<span>{text}</span> {_error(entry)}{_noted(entry.note)}{_buttons(entry)}</div></div>"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 90 else f"{value / 60:.0f} min"


def _error(entry: Entry) -> str:
    return f'<p class="bad">{escape(entry.error)}</p>' if entry.error else ""


def _noted(text: str) -> str:
    return f'<p class="bad">{escape(text[:_LONG])}</p>' if text else ""


def _buttons(entry: Entry) -> str:
    return " ".join(button(what, entry.item.name, *text) for what, *text in _BUTTONS[entry.state])


def queue(studio: Studio) -> str:
    """Return the queue as a list: picture of the state, prompt, settings, buttons."""
    with studio.queue.lock:
        entries, paused = studio.queue.order(), studio.queue.paused
    rows = "".join(each(entries, _row, _name, '<li class="failed">{}</li>'))
    if not rows:
        rows = '<li class="quiet">The queue is empty.</li>'
    text, title = ("Go on", "start jobs again") if paused else ("Pause", "start no further job")
    head = f"<p>{button('pause', '', text, title)}</p>"
    return f'{head}<ol class="queue">{rows}</ol>'


def _row(entry: Entry) -> str:
    job = entry.item.job
    what = f"{entry.state}" + (", with reference" if entry.compare else "")
    if entry.step and entry.steps:
        what += f", step {entry.step} of {entry.steps}"
    return (
        f'<li class="{entry.state}"><span class="state">{what}</span>'
        f"<b>{escape(entry.item.name)}</b><span>{escape(job.prompt[:200])}</span>"
        f'<span class="quiet">{settings_line(job)}</span>{_error(entry)}{_noted(entry.note)}'
        f'<span class="buttons">{_buttons(entry)}</span></li>'
    )


def settings_line(job: Job) -> str:
    """Return the settings that one looks for first."""
    size = f"{job.width}×{job.height}, {job.frames} frames" if job.width else "default size"
    moved = ", motion" if job.motion else ""
    steps = f"{job.steps or 'default'} steps, seed {job.seed}"
    return escape(f"{size}, {steps}, {acceleration(job)}{moved}")


def acceleration(job: Job) -> str:
    """Return its preset or the name of its plan."""
    plan = None if job.plan is None else job.accel_plan()
    return plan.name if plan else job.preset or "not accelerated"


def gallery(studio: Studio, count: int = 24) -> str:
    """Return the newest ``count`` videos as cards, and what the folder holds besides."""
    videos, left_out = studio.finished(), studio.left_out
    drawn = each(
        videos[:count], lambda video: _card(studio, video), lambda video: video.name,
        "<figure><figcaption>{}</figcaption></figure>",
    )  # fmt: skip
    cards = "".join(drawn)
    if not cards:
        cards = '<p class="quiet">No videos yet. What you render appears here.</p>'
    more = len(videos) - count
    if more > 0:
        cards += f"<p>{button('more', '', f'{more} more', 'show older videos')}</p>"
    return f'<div class="gallery">{cards}{_left_out(left_out)}</div>'


def _left_out(notes: list[str]) -> str:
    """Return which files of the folder are not shown, folded up."""
    if not notes:
        return ""
    shown = [escape(note[:_LONG]) for note in notes[:_NOTES]]
    shown += [f"and {len(notes) - _NOTES} more"] if len(notes) > _NOTES else []
    head = f"{len(notes)} file{'s are' if len(notes) > 1 else ' is'} left out"
    items = "".join(f"<li>{note}</li>" for note in shown)
    return f'<details class="quiet"><summary>{head}</summary><ul>{items}</ul></details>'


def _card(studio: Studio, video: Finished) -> str:
    buttons = [button("reuse", video.name, "Reuse", "put its settings into the form")]
    buttons.append(button("continue", video.name, "Go on", "start from its last frame"))
    if video.reference:
        buttons.append(button("compare", video.name, "Compare", "see it beside its reference"))
    buttons.append(button("delete", video.name, "Delete", "delete the video for good"))
    return (
        f"<figure>{player(studio, video)}<figcaption><b>{escape(video.name)}</b>"
        f'<span class="quiet">{settings_line(video.job)}</span>'
        f'<span class="quiet">{measured(video)}</span>{_noted(video.prompt_cut)}'
        f'<span class="buttons">{" ".join(buttons)}</span></figcaption></figure>'
    )


def player(studio: Studio, video: Finished, *, large: bool = False) -> str:
    """Return a video element; of a folder its first frame, of what no browser plays a link."""
    frames = files_of(video.video)
    url = file_url(studio, frames[0])
    if video.job.format in PLAYABLE:
        how = "autoplay" if large else 'preload="metadata"'
        what = escape(f"{video.name}: {video.job.prompt[:200]}")
        return (
            f'<video src="{escape(url)}" aria-label="{what}" {how} loop muted playsinline controls>'
            "</video>"
        )
    if video.job.format == "gif":
        return f'<img src="{escape(url)}" alt="{escape(video.name)}">'
    if video.job.format == "png":
        about = f"First of {len(frames)} frames in the folder {video.video.name}"
        return (
            f'<img src="{escape(url)}" alt="{escape(f"{video.name}: {about}")}">'
            f'<p class="quiet">{escape(about)}</p>'
        )
    return f'<p><a href="{escape(url)}" download>{escape(video.video.name)}</a></p>'


def measured(video: Finished) -> str:
    """Return seconds, GiB and dB of a finished video."""
    parts = [f"{video.seconds:.2f} s"] if video.seconds else []
    parts += [f"{video.gib:.2f} GiB"] if video.gib else []
    parts += [f"{video.db:.1f} dB"] if video.db is not None else []
    return escape(", ".join(parts))


def newest(studio: Studio) -> Finished | None:
    """Return the newest video that is no reference of another."""
    return next((v for v in studio.finished() if not v.name.endswith("-reference")), None)


def latest(studio: Studio) -> str:
    """Return the newest video, large."""
    video = newest(studio)
    if video is None:
        return '<div class="latest empty"><p class="quiet">Your video will appear here.</p></div>'

    def shown(video: Finished) -> str:
        return (
            f"{player(studio, video, large=True)}<p><b>{escape(video.name)}</b> "
            f'<span class="quiet">{measured(video)}</span></p>{_noted(video.prompt_cut)}'
        )

    (drawn,) = each([video], shown, lambda video: video.name)
    return f'<div class="latest">{drawn}</div>'
