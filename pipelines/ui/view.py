"""HTML for the page, from what the server knows.

Every text from outside is escaped here.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from urllib.parse import quote

from accel.pipelines.batch.events import Part
from accel.pipelines.job import Job
from accel.pipelines.ui.entry import Entry, EntryState
from accel.pipelines.ui.studio import Finished, Studio

_BUTTONS = {
    EntryState.WAITING: (
        ("up", "↑", "earlier"), ("down", "↓", "later"), ("first", "⤒", "next in line"),
        ("stop", "Stop", "set aside"), ("remove", "✕", "remove"),
    ),
    EntryState.RUNNING: (("stop", "Stop", "stop after this step; the steps done are kept"),),
    EntryState.STOPPED: (("retry", "Go on", "from the last saved step"), ("remove", "✕", "remove")),
    EntryState.FAILED: (("retry", "Retry", "try again"), ("remove", "✕", "remove")),
}  # fmt: skip


def file_url(path: Path) -> str:
    """Return where the page finds a file of the output folder.

    The time of its last change keeps a browser from showing an older one.
    """
    return f"/gradio_api/file={quote(str(path))}?v={path.stat().st_mtime_ns}"


def button(what: str, name: str, text: str, title: str) -> str:
    """Return a button that ``actions.js`` turns into the event ``act``."""
    return (
        f'<button type="button" data-act="{what}" data-name="{escape(name)}" '
        f'title="{escape(title)}" aria-label="{escape(f"{title}: {name}")}">{text}</button>'
    )


def problem(text: str) -> str:
    """Return what is wrong, in place."""
    return f'<p class="bad" role="alert">{escape(text)}</p>'


def now(studio: Studio) -> str:
    """Return what runs: preview, step bar with the time left, a stop button."""
    with studio.queue.lock:
        entries = studio.queue.order()
        running = [entry for entry in entries if entry.state == EntryState.RUNNING]
        waiting = sum(entry.state == EntryState.WAITING for entry in entries)
        notice, paused = studio.queue.notice, studio.queue.paused
    parts = [_running(entry) for entry in running]
    if notice:
        parts.insert(0, problem(notice))
    if not running:
        text = "Paused." if paused else "Starting." if waiting else "Nothing is running."
        parts.append(f'<p class="quiet">{text}</p>')
    if waiting:
        parts.append(f'<p class="quiet">{waiting} waiting in the queue.</p>')
    return f'<div class="now">{"".join(parts)}</div>'


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
        f"<span>{text}</span> {_error(entry)}{_buttons(entry)}</div></div>"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 90 else f"{value / 60:.0f} min"


def _error(entry: Entry) -> str:
    return f'<p class="bad">{escape(entry.error)}</p>' if entry.error else ""


def _buttons(entry: Entry) -> str:
    return " ".join(button(what, entry.item.name, *text) for what, *text in _BUTTONS[entry.state])


def queue(studio: Studio) -> str:
    """Return the queue as a list: picture of the state, prompt, settings, buttons."""
    with studio.queue.lock:
        entries, paused = studio.queue.order(), studio.queue.paused
    rows = "".join(_row(entry) for entry in entries)
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
        f'<span class="quiet">{settings_line(job)}</span>{_error(entry)}'
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
    """Return the newest ``count`` videos as cards."""
    videos = studio.finished()
    cards = "".join(_card(video) for video in videos[:count])
    if not cards:
        cards = '<p class="quiet">No videos yet. What you render appears here.</p>'
    more = len(videos) - count
    if more > 0:
        cards += f"<p>{button('more', '', f'{more} more', 'show older videos')}</p>"
    return f'<div class="gallery">{cards}</div>'


def _card(video: Finished) -> str:
    compared = video.comparison and video.comparison.get("reference")
    buttons = [button("reuse", video.name, "Reuse", "put its settings into the form")]
    if compared:
        buttons.append(button("compare", video.name, "Compare", "see it beside its reference"))
    buttons.append(button("delete", video.name, "Delete", "delete the video for good"))
    return (
        f"<figure>{player(video)}<figcaption><b>{escape(video.name)}</b>"
        f'<span class="quiet">{settings_line(video.job)}</span>'
        f'<span class="quiet">{measured(video)}</span>'
        f'<span class="buttons">{" ".join(buttons)}</span></figcaption></figure>'
    )


def player(video: Finished, *, large: bool = False) -> str:
    """Return a video element; formats that browsers cannot play get a link."""
    url = file_url(video.video)
    if video.job.format in ("mp4", "webm"):
        how = "autoplay" if large else 'preload="metadata"'
        what = escape(f"{video.name}: {video.job.prompt[:200]}")
        return (
            f'<video src="{escape(url)}" aria-label="{what}" {how} loop muted playsinline controls>'
            "</video>"
        )
    if video.job.format == "gif":
        return f'<img src="{escape(url)}" alt="{escape(video.name)}">'
    return f'<p><a href="{escape(url)}" download>{escape(video.video.name)}</a></p>'


def measured(video: Finished) -> str:
    """Return seconds, GiB and dB of a finished video."""
    sidecar, parts = video.sidecar, []
    if sidecar.get("seconds"):
        parts.append(f"{sidecar['seconds']:.2f} s")
    if sidecar.get("peak_bytes"):
        parts.append(f"{sidecar['peak_bytes'] / 2**30:.2f} GiB")
    if video.comparison:
        parts.append(f"{video.comparison['psnr_db']:.1f} dB")
    return escape(", ".join(parts))


def latest(studio: Studio) -> str:
    """Return the newest video, large."""
    videos = [v for v in studio.finished() if not v.name.endswith("-reference")]
    if not videos:
        return '<div class="latest empty"><p class="quiet">Your video will appear here.</p></div>'
    video = videos[0]
    return (
        f'<div class="latest">{player(video, large=True)}<p><b>{escape(video.name)}</b> '
        f'<span class="quiet">{measured(video)}</span></p></div>'
    )
