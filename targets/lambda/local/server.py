"""An HTTP/1.1 server on threads: the accepting and the connections, whoever answers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .wire import Connection, Disconnected, Head, WireError


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply. Without a Content-Length among the headers it is that of the body.

    With `close` the connection ends after it.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | bytearray = b""
    close: bool = False


class Server:
    """Serves each connection of a listening socket on its own thread until `stop`.

    `answer` gets the connection (to read the body from), the head of a request, and the time when
    that had arrived, in time.monotonic() seconds. It may raise WireError to end the connection.
    """

    def __init__(
        self, listener: socket.socket, answer: Callable[[Connection, Head, float], Answer]
    ) -> None:
        self._listener = listener
        self._answer = answer
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="slicewise-accept", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is stopped."""
        self.stopping.wait()

    def stop(self) -> None:
        """Close the port and all connections."""
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _address = self._listener.accept()
            except OSError:
                self.stopping.wait(0.01)  # a client that has gone already, or no descriptors left
                continue
            with self._lock:
                self._sockets.add(sock)
            threading.Thread(
                target=self._serve, args=(sock,), name="slicewise-connection", daemon=True
            ).start()

    def _serve(self, sock: socket.socket) -> None:
        """Answer the requests of one connection until the client closes it."""
        try:
            connection = Connection(sock)
            while head := connection.read_head():
                answer = self._answer(connection, head, time.monotonic())
                respond(connection, answer)
                if answer.close or not head.keep_alive:
                    break
        except WireError as error:
            with contextlib.suppress(OSError):
                respond(connection, Answer(status=error.status))
        except (Disconnected, OSError):
            pass  # the client has gone
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()


def respond(connection: Connection, answer: Answer) -> None:
    """Send an answer, with what is left of the request out of the way."""
    connection.discard_body()
    connection.respond(answer.status, answer.headers, answer.body)
