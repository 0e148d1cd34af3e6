"""The main part of the page, as one gradio component: examples, camera, answer and explanation.

The browser's side is in ``assets``. Its functions call the methods of `Server`; each takes and returns one dictionary.
An error that the user can correct is returned as ``{"error": message}``.
"""

import base64
import functools
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import gradio as gr

from strm_lightning.classifier.export.graphs import check_packages
from strm_lightning.classifier.predictions import Prediction
from strm_lightning.classifier.videos import Video
from strm_lightning.data.decode.video import VIDEO_SUFFIXES
from strm_lightning.errors import InputError, MissingPackageError
from strm_lightning.web.camera_frames import decode_frames
from strm_lightning.web.example_pictures import film_strip
from strm_lightning.web.explanation_view import draw_explanation
from strm_lightning.web.session import Session
from strm_lightning.web.session_store import SessionStore
from strm_lightning.web.upload_folder import uploaded

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("camera.js", "cards.js", "live.js", "export.js", "studio.js")
EXAMPLES_SUFFIXES = frozenset({".safetensors"})
Answer = dict[str, Any]


def add_studio(store: SessionStore, folder: Path, max_mb: int) -> gr.HTML:
    """Add the component to the page that is being built.

    Args:
        store: the sessions.
        folder: folder for files to download.
        max_mb: largest size of an uploaded file, in megabytes.
    """
    config = store.plain.preprocessing
    limits = {
        "frames": config.num_frames,
        "short_side": config.short_side or round(config.image_size * 256 / 224),
        "max_mb": max_mb,
        "suffixes": sorted(VIDEO_SUFFIXES),
        "export_needs": _missing_for_export(),
    }
    return gr.HTML(
        value={"session": None},
        html_template=(_ASSETS / "studio.html").read_text("utf-8"),
        js_on_load="\n".join((_ASSETS / name).read_text("utf-8") for name in _SCRIPTS),
        apply_default_css=False,
        server_functions=Server(store, folder).functions(),
        limits=limits,
    )


def style_sheet() -> str:
    """Return the CSS of the component and of the panels below it."""
    return "".join((_ASSETS / name).read_text("utf-8") for name in ("studio.css", "panels.css"))


class Server:
    """Functions that the browser calls.

    Args:
        store: the sessions.
        folder: folder for files to download.
    """

    def __init__(self, store: SessionStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._one_export = Lock()  # an export takes the memory of a second model, and minutes of the processor

    def functions(self) -> list[Callable[[Answer], Answer]]:
        """Return the functions by which the browser changes or reads a session."""
        changing = (self.add_class, self.rename_class, self.remove_class, self.start_fresh, self.set_threshold)
        examples = (self.add_file, self.add_recording, self.remove_example, self.load)
        reading = (self.predict_frames, self.explain_frames, self.explain_file, self.pictures, self.save)
        exporting = (self.export, self.export_step, self.stop_export)
        with_state = [self._function(method, state=True) for method in (*changing, *examples, self.state)]
        return with_state + [self._function(method, state=False) for method in (*reading, *exporting, self.touch)]

    def _function(self, method: Callable[..., Answer | None], *, state: bool) -> Callable[[Answer], Answer]:
        @functools.wraps(method, assigned=("__name__", "__doc__"))
        def call(data: Answer) -> Answer:
            arguments = dict(data) if isinstance(data, Mapping) else {}
            try:
                session = self.store.of(str(arguments.pop("session", None)))
                answer = method(session, **arguments) or {}
            except InputError as error:
                return {"error": sentence(str(error))}
            return answer | ({"state": describe(session)} if state else {})

        del call.__wrapped__  # gradio would read the signature of the method
        return call

    def state(self, session: Session) -> None:
        """Return the classes and examples."""

    def touch(self, session: Session) -> None:
        """Report that the page is still open."""

    def add_class(self, session: Session) -> None:
        """Add a class without examples."""
        session.add_class()

    def rename_class(self, session: Session, label: str, name: str) -> None:
        """Rename a class."""
        session.rename_class(str(label), str(name))

    def remove_class(self, session: Session, label: str) -> None:
        """Remove a class."""
        session.remove_class(str(label))

    def start_fresh(self, session: Session) -> None:
        """Replace all examples by two classes without examples."""
        session.replace_all({"action 1": (), "action 2": ()})

    def set_threshold(self, session: Session, threshold: Any) -> None:
        """Set the threshold of ``unknown``."""
        session.set_threshold(threshold)

    def add_file(self, session: Session, label: str, path: str) -> Answer:
        """Add an uploaded video to a class."""
        with uploaded(path) as video:
            self.store.check_room()
            return {"name": session.add_example(str(label), video, video.name).name}

    def add_recording(self, session: Session, label: str, frames: Any, seconds: Any) -> Answer:
        """Add a recording of the camera to a class."""
        self.store.check_room()
        video = decode_frames(frames, session.classifier.preprocessing.num_frames)
        return {"name": session.add_example(str(label), video, "recording", float(seconds)).name}

    def remove_example(self, session: Session, label: str, name: str) -> None:
        """Remove an example."""
        session.remove_example(str(label), str(name))

    def load(self, session: Session, path: str) -> None:
        """Replace the examples by those of an uploaded file."""
        with uploaded(path, EXAMPLES_SUFFIXES) as file:
            self.store.check_room()
            session.load(file)

    def save(self, session: Session) -> Answer:
        """Save the examples to a file with a secret name and return its address."""
        path = self._new_file("actions.safetensors")
        session.save(path)
        return {"url": _address(path)}

    def export(self, session: Session) -> Answer:
        """Export the classifier to a ZIP file with a secret name and return its address."""
        if not self._one_export.acquire(blocking=False):
            raise InputError("another export is running: try again when it is done")
        try:
            self.store.check_room()
            path = self._new_file("strm-export.zip")
            return {"parity": session.export(path), "url": _address(path)}
        finally:
            self._one_export.release()

    def export_step(self, session: Session) -> Answer:
        """Return the name of the step of the export that runs."""
        return {"step": session.export_step}

    def stop_export(self, session: Session) -> None:
        """Stop the export."""
        session.stop_export()

    def _new_file(self, name: str) -> Path:
        return self.folder / secrets.token_hex(16) / name

    def pictures(self, session: Session, digests: Any) -> Answer:
        """Return the pictures of examples."""
        wanted = set(digests)
        clips = [clip for label in session.labels for clip in session.clips(label) if clip.digest in wanted]
        return {"pictures": {clip.digest: film_strip(clip.thumbnail) for clip in clips}}

    def predict_frames(self, session: Session, frames: Any) -> Answer:
        """Predict the class of frames of the camera."""
        video = decode_frames(frames, session.classifier.preprocessing.num_frames)
        return describe_prediction(session.predict(video))

    def explain_frames(self, session: Session, frames: Any, width: Any, dark: Any) -> Answer:
        """Predict the class of frames of the camera and explain the prediction."""
        video = decode_frames(frames, session.classifier.preprocessing.num_frames)
        return _explain(session, video, "camera", width, dark)

    def explain_file(self, session: Session, path: str, width: Any, dark: Any) -> Answer:
        """Predict the class of an uploaded video and explain the prediction."""
        with uploaded(path) as video:
            return _explain(session, video, video.name, width, dark)


def _address(path: Path) -> str:
    return f"/gradio_api/file={quote(str(path))}"


def _missing_for_export() -> str:
    """Say what must be installed before an export, or return an empty text."""
    try:
        check_packages()
    except MissingPackageError as error:
        return sentence(str(error))
    return ""


def describe(session: Session) -> Answer:
    """Describe the classes and examples of a session."""
    classes = [
        {"label": label, "clips": [{"name": clip.name, "digest": clip.digest} for clip in session.clips(label)]}
        for label in list(session.labels)
    ]
    return {
        "classes": classes,
        "ready": session.num_classes > 1,
        "greets": session.greets,
        "threshold": session.classifier.threshold,
    }


def describe_prediction(prediction: Prediction) -> Answer:
    """Describe a prediction."""
    return {
        "label": prediction.label,
        "best": next(iter(prediction.probabilities)),
        "rejected": prediction.rejected,
        "probabilities": dict(prediction.probabilities),
    }


def sentence(message: str) -> str:
    """Reduce the paths in a message to file names, and end it with a period."""
    parts = (
        Path(part.rstrip(":")).name + ":" * part.endswith(":") if "/" in part else part for part in message.split(" ")
    )
    text = " ".join(parts)
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def _explain(session: Session, video: Video, name: str, width: Any, dark: Any) -> Answer:
    explanation = session.explain(video, name)
    picture = draw_explanation(explanation, min(max(int(width), 300), 2000), dark=bool(dark))
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return describe_prediction(explanation.prediction) | {"picture": url, "sentences": explanation.sentences()}
