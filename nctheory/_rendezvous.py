"""How the processes of one run find each other, and how they learn that one of them is gone.

Before JAX's own service starts, every process opens a connection to process 0 at the coordinator's port and says who it
is. Process 0 waits for all of them and lets them go on together, or tells all of them why it cannot. JAX alone would
abort without naming what it waited for. The connections stay open: the system closes those of a process that dies, in
whatever way, and the others know at once.
"""

import contextlib
import json
import os
import platform
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

# How long a process whose peer died may stay inside one operation, and how long process 0 waits for those that work on.
GRACE_S = 20.0
PATIENCE_S = 300.0
EXIT_LOST = 3
_GREETING = "nctheory run"


class DistributedError(RuntimeError):
    """The processes of one run did not come together, or one of them ended too early; the message says which."""


class Connection:
    """JSON messages, one a line, over a socket."""

    def __init__(self, sock: socket.socket):
        self.socket, self._buffer = sock, b""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A machine that loses its power closes nothing: then these probes end the connection, within a minute.
        for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; to a process that is gone, nothing."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(5)
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; an empty one if there is none in time, None if the other side is gone or is no process."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            try:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return {}
            except OSError:
                return None
            self._buffer += data
            if not data or len(self._buffer) > 1 << 24:
                return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Close the connection, which the other side notices."""
        self.socket.close()

    def is_closed(self) -> bool:
        """Whether the other side has closed the connection."""
        try:
            readable, _, _ = select.select([self.socket], [], [], 0)
            return bool(readable) and self.socket.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True


def meet(host: str, port: int, count: int, index: int, timeout_s: float) -> "Peers":
    """Wait until all processes are there.

    Args:
        host: name or address of process 0.
        port: port at which JAX's service will listen afterwards.
        count: number of processes.
        index: which of them this is.
        timeout_s: how long to wait, in seconds.

    Returns:
        The open connections.

    Raises:
        DistributedError: saying what was waited for, or how the processes contradict each other.
    """
    hello = {"greeting": _GREETING, "count": count, "index": index, **_describe_process()}
    deadline = time.monotonic() + timeout_s
    if index == 0:
        return _Meeting(hello, count, f"{host}:{port}").hold(host, port, deadline, timeout_s)
    connection = _reach(host, port, index, deadline, timeout_s)
    try:
        processes = _ask(connection, hello, f"at {host}:{port}", deadline, timeout_s)
    except DistributedError:
        connection.close()
        raise
    return Peers(index, processes, {0: connection})


def _ask(
    connection: Connection, hello: dict[str, Any], where: str, deadline: float, timeout_s: float
) -> list[dict[str, Any]]:
    connection.send(hello)
    # A little longer than process 0 waits, whose word says more.
    answer = connection.receive(max(deadline - time.monotonic(), 0) + 1)
    if answer is None:
        raise DistributedError(f"What answers {where} is not process 0 of this run, or it gave up.")
    if "error" in answer:
        raise DistributedError(str(answer["error"]))
    if "processes" not in answer:
        raise DistributedError(
            f"Process {hello['index']} waited {timeout_s:g} s for process 0 {where} to let it go on."
        )
    return answer["processes"]


def _reach(host: str, port: int, index: int, deadline: float, timeout_s: float) -> Connection:
    reason: object = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            return Connection(socket.create_connection((host, port), timeout=min(left, 5.0)))
        except OSError as error:
            reason = error.strerror or error
            time.sleep(0.1)
    raise DistributedError(
        f"Process {index} waited {timeout_s:g} s for process 0 (the coordinator) at {host}:{port}: {reason}."
    )


def _describe_process() -> dict[str, Any]:
    """Where this process runs, so that messages can name it and processes on the same cores can share them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    machine = platform.node()
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        machine = file.read().strip()
    return {"name": f"process {os.getpid()} on {platform.node()}", "cores": f"{machine} {cores}"}


def _is_hello(message: dict[str, Any]) -> bool:
    """Whether a process of a run sent this, and not a stranger."""
    kinds = {"count": int, "index": int, "name": str, "cores": str}
    whole = all(isinstance(message.get(name), kind) for name, kind in kinds.items())
    return message.get("greeting") == _GREETING and whole


class _Meeting:
    """Process 0 waiting for the others."""

    def __init__(self, hello: dict[str, Any], count: int, where: str):
        self._hellos, self._count, self._where = {0: hello}, count, where
        self._connections: dict[int, Connection] = {}

    def hold(self, host: str, port: int, deadline: float, timeout_s: float) -> "Peers":
        try:
            if socket.has_dualstack_ipv6():
                listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server(("", port))
        except OSError as error:
            raise DistributedError(
                f"Process 0 cannot listen at port {port} ({error.strerror or error}); another run may use it."
            ) from error
        with listener:
            self._reach_itself(host, port, min(timeout_s, 5.0))
            while missing := self._missing():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._fail(
                        f"Waited {timeout_s:g} s at {self._where} for process{'es' if len(missing) > 1 else ''} "
                        f"{', '.join(map(str, missing))} of {self._count}, which did not come."
                    )
                listener.settimeout(min(left, 0.5))
                with contextlib.suppress(TimeoutError):
                    self._admit(Connection(listener.accept()[0]), left)
        processes = [self._hellos[i] for i in range(self._count)]
        for connection in self._connections.values():
            connection.send({"processes": processes})
        return Peers(0, processes, self._connections)

    def _reach_itself(self, host: str, port: int, timeout_s: float) -> None:
        """Try the address that JAX's client of this process will use, which aborts where it finds nobody.

        The connection that this leaves at the listener says nothing and is dropped like any stranger's.
        """
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
        except OSError as error:
            raise DistributedError(
                f"Process 0 waits at port {port} but cannot be reached at {self._where}, not even by itself "
                f"({error.strerror or error}): the coordinator must be an address of its own machine."
            ) from error

    def _missing(self) -> list[int]:
        for index in [i for i, connection in self._connections.items() if connection.is_closed()]:
            self._connections.pop(index).close()
        return [i for i in range(1, self._count) if i not in self._connections]

    def _admit(self, connection: Connection, left: float) -> None:
        hello = connection.receive(min(left, 2.0))
        if not hello or not _is_hello(hello):
            connection.close()
            return
        index, count = hello["index"], hello["count"]
        if count != self._count:
            text = f"Process {index} was started as one of {count} processes, but process 0 as one of {self._count}."
        elif index in self._connections:
            text = f"Two processes were started as process {index} of {count}."
        else:
            self._hellos[index], self._connections[index] = hello, connection
            return
        raise self._fail(text, connection)

    def _fail(self, text: str, *others: Connection) -> DistributedError:
        for connection in (*self._connections.values(), *others):
            connection.send({"error": text})
            connection.close()
        return DistributedError(text)


class Peers:
    """The other processes of a run: process 0 is connected to all of them, the others to process 0.

    Attributes:
        index: which process this is.
        names: what each process is called in messages.
        num_on_these_cores: processes that use the same cores of the same machine as this one, itself included.
        place_on_these_cores: how many of these come before this one.
    """

    def __init__(self, index: int, processes: list[dict[str, Any]], connections: dict[int, Connection]):
        self.index = index
        self.names = [f"process {i} of {len(processes)} ({each['name']})" for i, each in enumerate(processes)]
        on_these_cores = [i for i, each in enumerate(processes) if each["cores"] == processes[index]["cores"]]
        self.num_on_these_cores, self.place_on_these_cores = len(on_these_cores), on_these_cores.index(index)
        self._open, self._ended = connections, set[int]()
        self._lost: str | None = None
        self._raised, self._leaving, self._all_closed = False, False, threading.Event()
        threading.Thread(target=self._watch, name="nctheory peers", daemon=True).start()

    def check(self) -> None:
        """Go on only while no process has failed.

        Raises:
            DistributedError: naming the process that ended before its work was done.
        """
        if self._lost is not None:
            self._raised = True
            raise DistributedError(self._lost)

    def has_left(self, index: int) -> bool:
        """Whether that process has ended, be it after its work."""
        return index in self._ended

    def leave(self, *, failed: bool, patience_s: float = PATIENCE_S, why: str = "") -> None:
        """Say that this process ends. Process 0 stays until the others have gone: JAX aborts them without it.

        Args:
            failed: whether its work is not done.
            patience_s: how long process 0 stays at most, in seconds.
            why: what went wrong, for the messages of the others.
        """
        self._leaving = True
        for connection in list(self._open.values()):
            connection.send({"end": True, "failed": failed, "why": why})
        if self.index == 0:
            self._all_closed.wait(min(patience_s, GRACE_S + 5) if failed or self._lost else patience_s)

    def _watch(self) -> None:
        while self._open:
            readable, _, _ = select.select([each.socket for each in self._open.values()], [], [])
            for index, connection in list(self._open.items()):
                if connection.socket in readable:
                    self._hear(index, connection.receive(1.0))
        self._all_closed.set()

    def _hear(self, index: int, message: dict[str, Any] | None) -> None:
        if message is None:
            self._open.pop(index).close()
            if self._leaving:
                return
            if index not in self._ended:
                self._lose(f"{self.names[index]} ended before its work was done.")
            elif index == 0:
                self._lose(f"{self.names[0]} ended before the others.")
            if index == 0:
                # JAX aborts this process in a moment, as its service died with process 0.
                self._give_up()
        elif "end" in message:
            self._ended.add(index)
            if message.get("failed"):
                why = str(message.get("why") or "").rstrip(".")
                self._lose(f"{self.names[index]} failed{': ' * bool(why)}{why}.")
        elif "lost" in message:
            self._lose(str(message["lost"]))

    def _lose(self, text: str) -> None:
        if self._lost is not None:
            return
        self._lost = text[0].upper() + text[1:]
        for connection in list(self._open.values()):
            connection.send({"lost": text})
        timer = threading.Timer(GRACE_S, self._give_up)
        timer.daemon = True
        timer.start()

    def _give_up(self) -> None:
        """End a process whose main thread waits where no error reaches it, such as inside a collective operation."""
        if not (self._raised or self._leaving):
            os.write(2, f"error: {self._lost} What was stored is kept.\n".encode())
            os._exit(EXIT_LOST)
