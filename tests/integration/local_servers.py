"""Strict local servers for the tests: they serve what they were told, and nothing else."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

DATA = os.urandom(3 << 20)
ELF = b"\x7fELF\x02\x01" + bytes(10) + b"\x02\x00\x3e\x00" + b"program"  # a head that says: amd64
Handler = http.server.BaseHTTPRequestHandler
Route = Callable[[Handler], None]


class Site:
    """An HTTP server on 127.0.0.1 that answers 404 to all that it was not told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        site = self

        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.command, self.path, dict(self.headers)))
                site.routes.get(self.path, absent)(self)

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_PUT(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def serve(self, path: str, data: bytes, **more: Any) -> str:
        self.routes[path] = lambda handler: answer(handler, data, **more)
        return self.url + path

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def absent(handler: Handler) -> None:
    answer(handler, b"no", status=404)


def answer(handler: Handler, data: bytes, *, status: int = 200, stated: bool = True, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if stated:
        handler.send_header("Content-Length", str(len(data)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    if handler.command != "HEAD":
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(data)


def cut_off(data: bytes) -> Route:
    """Promise all of it, send the half, and reset the connection."""
    return lambda handler: _cut_off(handler, data)


def reset(handler: Handler) -> None:
    """Do that with DATA."""
    _cut_off(handler, DATA)


def _cut_off(handler: Handler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command == "HEAD":
        return
    handler.wfile.write(data[: len(data) // 2])
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def in_turn(*routes: Route) -> Route:
    left = list(routes)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve raw connections in threads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        open_ones: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    open_ones.append(connection)
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join(2)
        for connection in open_ones:
            connection.close()


def silent(connection: socket.socket) -> None:
    """Accept and say nothing."""


def dripping(connection: socket.socket) -> None:
    """Send a header one byte at a time: each read succeeds, the whole never ends."""
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"H")
            time.sleep(0.2)


def stalling(connection: socket.socket) -> None:
    """Begin a body and stop."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin")


def trickling(connection: socket.socket) -> None:
    """Send a body one byte at a time."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)
