"""SIGTERM as preemption: noted while work goes on, so that it stops where it can be taken up again.

Schedulers send SIGTERM some seconds before they take a machine back. Nothing is installed on import, and only the main
thread can install a handler; elsewhere the signal acts as it ever did.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

EXIT_PREEMPTED = 128 + signal.SIGTERM


class Preempted(SystemExit):
    """Work that stopped because SIGTERM asked for it; uncaught, it ends the process with code 143."""

    def __init__(self, message: str):
        super().__init__(int(EXIT_PREEMPTED))
        self.message = message

    def __str__(self) -> str:
        """What was saved."""
        return self.message


class _Urgent(BaseException):
    """Raised where the signal arrives, inside `Preemption.attempt`."""


class Preemption:
    """Whether SIGTERM has arrived, and how to stop; `deferred` makes it.

    Attributes:
        asked: whether SIGTERM has arrived.
    """

    def __init__(self, earlier: Any = None):
        self.asked = False
        self._earlier = earlier
        self._is_urgent = False
        self._is_delivered = False

    def _note(self, *_: object) -> None:
        if self.asked:
            # Who asks twice does not want to wait.
            self.deliver()
        self.asked = True
        if self._is_urgent:
            raise _Urgent

    def deliver(self) -> None:
        """Hand a signal that has arrived to the handler that was there before, once."""
        signal.signal(signal.SIGTERM, self._earlier)
        if self.asked and not self._is_delivered:
            self._is_delivered = True
            signal.raise_signal(signal.SIGTERM)

    def _deliver_after(self, error: Exception) -> None:
        """Deliver a signal that has arrived, so that whoever catches the error does not lose it.

        Without a handler the process would end in silence: it ends by `Preempted`, with the error as its message.
        """
        if not self.asked or self._is_delivered:
            return
        message = f"{type(error).__name__}: {error}"
        if self._earlier is signal.SIG_DFL:
            self._is_delivered = True
            print(f"\nterminated, after an error: {message}", file=sys.stderr, flush=True)  # noqa: T201
            raise Preempted(message) from error
        try:
            self.deliver()
        except BaseException as ended:
            ended.add_note(message)
            raise

    def attempt(self, function: Callable[[], Any]) -> tuple[bool, Any]:
        """Carry out what may take longer than a scheduler waits, and leave it as soon as the signal arrives.

        Args:
            function: can be carried out again later.

        Returns:
            Whether it was carried out, and what it returned.
        """
        if self.asked:
            return False, None
        try:
            self._is_urgent = True
            value = function()
            self._is_urgent = False
            return True, value
        except _Urgent:
            return False, None
        finally:
            self._is_urgent = False

    def stop(self, saved: str) -> NoReturn:
        """End the work, also in a process that only heard of the signal from another one.

        Raises:
            Preempted: after one line on stderr; but whatever the handler raises that was there before, if it does,
                with `saved` as a note: a command line has its own way to end.
        """
        if callable(self._earlier):
            try:
                self._earlier(signal.SIGTERM, None)
            except BaseException as error:
                error.add_note(saved)
                raise
        # A progress bar may have left the cursor in the middle of a line.
        print(f"\nterminated: {saved}; resuming finishes the run.", file=sys.stderr, flush=True)  # noqa: T201
        raise Preempted(saved)


@contextlib.contextmanager
def deferred(*, enabled: bool = True) -> Iterator[Preemption]:
    """Note SIGTERM instead of ending, until the block ends; a second one acts at once.

    The block is to look at `asked` wherever it can be taken up again, save, and call `stop`. A signal that it did not
    act upon is delivered when it ends. Outside the main thread, or where SIGTERM is ignored, nothing is changed.

    Args:
        enabled: whether to do so at all.
    """
    earlier = signal.getsignal(signal.SIGTERM)
    if not enabled or threading.current_thread() is not threading.main_thread() or earlier in (signal.SIG_IGN, None):
        yield Preemption(earlier if threading.current_thread() is threading.main_thread() else None)
        return
    noted = Preemption(earlier)
    signal.signal(signal.SIGTERM, noted._note)
    try:
        yield noted
    except Exception as error:
        noted._deliver_after(error)
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
    noted.deliver()
