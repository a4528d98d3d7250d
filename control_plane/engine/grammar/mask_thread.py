"""A thread that computes masks while the engine's thread computes a step."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread

logger = logging.getLogger(__name__)


class MaskThread:
    """Runs tasks one after the other. The thread is a daemon: one that hangs holds up no shutdown."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], bytes], Future[bytes]]] = SimpleQueue()
        self._lock = Lock()
        self._started = False

    def submit(self, task: Callable[[], bytes]) -> Future[bytes]:
        """Queue a task. The first one starts the thread, so that servers without masks have none."""
        with self._lock:
            if not self._started:
                self._start()
        future: Future[bytes] = Future()
        self._tasks.put((task, future))
        return future

    def replace(self) -> None:
        """Leave a thread that hangs in a task to itself, and start another one."""
        logger.error("a mask of a grammar takes too long; its thread is left to itself")
        with self._lock:
            self._start()

    def _start(self) -> None:
        self._started = True
        Thread(target=self._run, name="grammar", daemon=True).start()

    def _run(self) -> None:
        while True:
            task, future = self._tasks.get()
            try:
                future.set_result(task())
            # The library's panics are not Exceptions.
            except BaseException as error:
                future.set_exception(error)
            # These names must not keep a matcher alive that its sequence no longer uses.
            del task, future
