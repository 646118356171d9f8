"""A proxy for the tests: CONNECT and plain forwarding. It stands for the internet, all of whose hosts are this machine."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """Notes what it is asked for; a context manager. ``user``: ``name:password`` that it wants. ``refuses``: with this status."""

    def __init__(self, *, user: str = "", refuses: int = 0) -> None:
        self.asked: list[str] = []
        outer = self
        wanted = "Basic " + base64.b64encode(user.encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def log_message(self, *_: object) -> None:
                pass

            def _allowed(self) -> bool:
                outer.asked.append(f"{self.command} {self.path}")
                status = refuses
                if user and self.headers.get("Proxy-Authorization") != wanted:
                    status = 407
                if status:
                    self.close_connection = True
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                return not status

            def do_CONNECT(self) -> None:
                if not self._allowed():
                    return
                port = int(self.path.rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port)) as there:
                    self.send_response(200)
                    self.end_headers()
                    self.close_connection = True
                    _pump(self.connection, there)

            def do_GET(self) -> None:
                if not self._allowed():
                    return
                parts = urlsplit(self.path)
                connection = http.client.HTTPConnection("127.0.0.1", parts.port or 80, timeout=20)
                headers = {
                    name: value for name, value in self.headers.items() if name != "Proxy-Authorization"
                }
                connection.request(
                    self.command, parts._replace(scheme="", netloc="").geturl(), headers=headers
                )
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

        class Server(ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _pump(one: Any, other: Any) -> None:
    with suppress(OSError):
        while True:
            ready, _, _ = select.select([one, other], [], [], 20)
            for sock in ready:
                data = sock.recv(65536)
                if not data:
                    return
                (other if sock is one else one).sendall(data)
            if not ready:
                return
