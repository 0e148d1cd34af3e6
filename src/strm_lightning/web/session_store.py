"""The sessions of all open pages, and the memory they share."""

import time
from threading import RLock

from strm_lightning.classifier.classifier import FewShotClassifier
from strm_lightning.errors import InputError, InputKeyError
from strm_lightning.messages import format_bytes
from strm_lightning.web.session import Examples, Session
from strm_lightning.web.upload_folder import stored_bytes

_IDLE_S = 3600.0  # an open page reports every minute; the session of another one is dropped after this time


class SessionStore:
    """Sessions by the name that gradio gives each open page.

    Args:
        plain: classifier with the model and the options of all sessions.
        greeting: examples that a page opens with.
        built_in: whether these are the built-in examples.
        max_bytes: limit of the total size of files and examples of all sessions.
    """

    def __init__(self, plain: FewShotClassifier, greeting: Examples, *, built_in: bool, max_bytes: int) -> None:
        self.plain, self.greeting, self.built_in, self.max_bytes = plain, greeting, built_in, max_bytes
        self.lock = RLock()
        self._sessions: dict[str, Session] = {}
        self._used: dict[str, float] = {}

    def open(self, name: str) -> Session:
        """Return the session of a page; create it with the greeting at the first call."""
        with self.lock:
            if name not in self._sessions:
                self._drop_idle()
                session = Session(self.plain, self.lock)
                session.replace_all(self.greeting, greets=self.built_in)
                self._sessions[name] = session
            return self.of(name)

    def of(self, name: str) -> Session:
        """Return the session of an open page.

        Raises:
            InputKeyError: the page was closed, or the server was started again.
        """
        if name not in self._sessions:
            raise InputKeyError("this page is no longer known to the server: reload it")
        self._used[name] = time.monotonic()
        return self._sessions[name]

    def names(self) -> list[str]:
        """Return the names of the open pages."""
        return list(self._sessions)

    def drop(self, name: str) -> None:
        """Delete a session, for example when its page is closed."""
        session = self._sessions.pop(name, None)
        self._used.pop(name, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Delete all sessions."""
        for name in self.names():
            self.drop(name)

    def room(self) -> int:
        """Number of bytes that can still be stored."""
        return self.max_bytes - sum(session.nbytes for session in list(self._sessions.values())) - stored_bytes()

    def check_room(self) -> None:
        """Check that another example can be stored.

        Raises:
            InputError: the limit is reached.
        """
        if self.room() <= 0:
            raise InputError(
                f"the examples of all open pages take {format_bytes(self.max_bytes)}, the limit of --max_total_mb: "
                "remove some"
            )

    def _drop_idle(self) -> None:
        now = time.monotonic()
        for name, used in list(self._used.items()):
            if now - used > _IDLE_S:
                self.drop(name)
