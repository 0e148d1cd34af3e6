"""The part of the page that finds the events of a long video and shows them on a time line."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.clips import regular_frames
from strm_lightning.classifier.events import find_events, plan_windows
from strm_lightning.classifier.predictions import WindowPrediction, clock
from strm_lightning.data.decode.video import VIDEO_SUFFIXES, video_seconds
from strm_lightning.errors import InputError
from strm_lightning.web.session_store import SessionStore
from strm_lightning.web.upload_folder import uploaded

_INTRODUCTION = """Finds when the actions happen in a video that also shows other things. The file is deleted after
reading."""
_FPS = 8.0  # frames per second that are encoded
_POLL_S = 0.5
_COLOURS = ("#2563a8", "#c2410c", "#2f855a", "#805ad5", "#b7791f", "#0e7490", "#be185d", "#4d7c0f")


def add_long_video_panel(store: SessionStore, studio: gr.HTML) -> None:
    """Add the panel to the page that is being built.

    Args:
        store: the sessions.
        studio: the main part of the page, which knows the name of the session.
    """

    def find(page: dict[str, Any], file: str | None, length: float) -> Iterator[str]:
        if file is None:
            yield _paragraph("Choose a video first, and wait until it is uploaded.")
            return
        try:
            with uploaded(file) as video:
                classifier = store.of(str(page["session"])).snapshot()
                yield from _find(classifier, video, length or None)
        except InputError as error:
            yield _paragraph(str(error))

    gr.Markdown(_INTRODUCTION)
    with gr.Row():
        file = gr.File(label="Long video", file_types=sorted(VIDEO_SUFFIXES), height=140)
        with gr.Column():
            length = gr.Slider(0, 20, value=0, step=0.5, label="Seconds of an action (0: as long as the examples)")
            start = gr.Button("Find the actions", variant="primary")
            stop = gr.Button("Stop")
    shown = gr.HTML(elem_id="events", apply_default_css=False)
    limits: dict[str, Any] = {"concurrency_id": "long video", "concurrency_limit": 2, "show_progress": "hidden"}
    # Gradio must see a generator function; a type checker at run time wraps named functions.
    events = lambda page, file, length: (yield from find(page, file, length))  # noqa: E731
    running = start.click(events, [studio, file, length], shown, **limits)
    stop.click(None, None, None, cancels=[running])


@dataclass
class _Reading:
    """Frames of a video, with the time of the newest one; another thread can stop them."""

    seconds: float = 0.0
    stopped: bool = False

    def frames(self, video: Path, classifier: FewShotClassifier) -> Iterator[tuple[Tensor, int]]:
        for frame, step in regular_frames(video, classifier.preprocessing, rate=_FPS):
            if self.stopped:
                return
            self.seconds = step / _FPS
            yield frame, step


def _find(classifier: FewShotClassifier, video: Path, length: float | None) -> Iterator[str]:
    """Yield the progress, and at the end the events, as HTML."""
    if len(classifier.classes_) < 2:
        raise InputError("give examples of at least two actions first")
    duration = video_seconds(video)
    plan = plan_windows(classifier.support, _FPS, length)
    reading = _Reading()
    with ThreadPoolExecutor(1) as pool:
        frames = reading.frames(video, classifier)
        work = pool.submit(find_events, frames, classifier.support, classifier.preprocessing, plan, video.name)
        try:
            while not work.done():
                yield _progress(reading.seconds, duration)
                try:
                    work.result(_POLL_S)
                except NotYet:
                    continue
            yield timeline(work.result(), duration)
        finally:  # also if the page stops the search
            reading.stopped = True


def _paragraph(text: str) -> str:
    return f'<div class="events"><p role="status">{escape(text)}</p></div>'


def _progress(seconds: float, duration: float) -> str:
    bar = (
        f'<progress max="{duration:.2f}" value="{seconds:.2f}" aria-label="Part of the video that is read"></progress>'
    )
    text = f"Read {clock(min(seconds, duration))} of {clock(duration)}"
    return f'<div class="events"><p role="status">{text}</p>{bar}</div>'


def timeline(events: Sequence[WindowPrediction], duration: float) -> str:
    """Return the events of a video as a time line and a table, as HTML.

    Args:
        events: the events.
        duration: duration of the video in seconds.
    """
    if not events:
        return _paragraph(f"No action was found in {clock(duration)}.")
    end = max(duration, *(event.end for event in events))
    labels = sorted({event.prediction.label for event in events})
    colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(labels)}
    bars, rows = [], []
    for event in events:
        label, colour = event.prediction.label, colours[event.prediction.label]
        place = f"left:{100 * event.start / end:.2f}%;width:{100 * (event.end - event.start) / end:.2f}%"
        time = f"{clock(event.start)} to {clock(event.end)}"
        title = escape(f"{label}, {time}", quote=True)
        bars.append(f'<span style="{place};background:{colour}" title="{title}"></span>')
        dot = f'<span class="key" style="background:{colour}"></span>'
        cells = (time, f"{dot}{escape(label)}", f"{event.prediction.probability:.2f}")
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = '<tr><th scope="col">Time</th><th scope="col">Action</th><th scope="col">Probability</th></tr>'
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    line = f'<div class="timeline" aria-hidden="true">{"".join(bars)}</div>'
    count = f"{len(events)} event{'s' * (len(events) > 1)} in {clock(duration)}"
    return f'<div class="events"><p role="status">{count}</p>{line}{table}</div>'
