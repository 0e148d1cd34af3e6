"""Export the examples of a page as a ZIP file, in a process of its own.

While torch converts a model, it patches methods of all modules of the process, so other pages could not use the model
at the same time. A process can also be ended when the page is closed.
"""

import os
import shutil
import signal
import sys
import zipfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.classifier.export import export_classifier
from strm_lightning.errors import InputError

FOLDER = "strm-export"  # in the ZIP file
_LOWER_PRIORITY = 5  # so that the answers of the camera stay fast
_END_S = 10.0


class ExportProcess:
    """An export that runs.

    Args:
        classifier: the classifier; it is not used after the constructor returns.
        path: ZIP file to write, in an existing folder of its own, which is also used for temporary files.
    """

    def __init__(self, classifier: FewShotClassifier, path: Path) -> None:
        self.step, self._stopped = "starting", False
        given = path.with_suffix(".pt")
        torch.save(classifier, given)  # not an argument of the process, for which torch needs shared memory
        context = get_context("spawn")  # a fork of a process with threads may wait for a lock forever
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(given, path, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> str:
        """Wait until the file is written, and return what was compared with PyTorch.

        Raises:
            InputError: the classifier cannot be exported, or `stop` was called.
        """
        kind, text = "step", "starting"
        try:
            while kind == "step":
                self.step = text
                kind, text = self._pipe.recv()
        except EOFError:
            reason = "was stopped" if self._stopped else "failed: the terminal of strm demo shows the reason"
            raise InputError(f"the export {reason}") from None
        finally:
            self._process.join(_END_S)
            self.stop()
            self._pipe.close()
        if kind == "error":
            raise InputError(text)
        return str(text)

    def stop(self) -> None:
        """End the process, if it still runs."""
        self._stopped = True
        self._process.terminate()
        self._process.join(_END_S)
        self._process.kill()


def _run(given: Path, path: Path, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal; the server then ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # delete the temporary folder and locks of this process
    if hasattr(os, "nice"):
        os.nice(_LOWER_PRIORITY)
    classifier = torch.load(given, map_location="cpu", weights_only=False)  # written by the server
    given.unlink()
    for clips in classifier.support.clips.values():
        for clip in clips:
            clip.stored = True  # an uploaded file is gone; another file may have its name
    folder = path.with_name(FOLDER)
    try:
        parity = export_classifier(classifier, folder, on_step=lambda step: pipe.send(("step", step)))
    except InputError as error:
        pipe.send(("error", str(error)))
        return
    with zipfile.ZipFile(path, "w") as archive:  # not compressed: weights hardly become smaller
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{FOLDER}/{file.name}")
    shutil.rmtree(folder)
    pipe.send(("done", str(parity)))
