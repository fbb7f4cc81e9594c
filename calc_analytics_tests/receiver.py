"""A webhook's other side: a real HTTP server in a thread that keeps what is posted and answers as the test sets it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0SECRET/B0SECRET"


class Receiver:
    """Answers each request with the next of `answers` (a status, 'hang', 'drip' or 'drop'), then with 200."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.taken: list[str] = []
        self.over = threading.Event()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Reads one request and answers it."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append({"path": handler.path, "headers": dict(handler.headers), "body": body})
        answer = self.answers.pop(0) if self.answers else 200
        if answer == "hang":
            self.over.wait()
        elif answer == "drip":
            while not self.over.wait(0.2):
                handler.wfile.write(b"H")
        elif answer != "drop":
            handler.send_response(answer)
            if 300 <= answer < 400:
                handler.send_header("Location", self.url)
            handler.send_header("Content-Length", "0")
            if answer < 300:
                self.taken.append(body["text"])
            handler.end_headers()


@contextmanager
def receiving(*answers: Any) -> Iterator[Receiver]:
    """A receiver on a free port; its URL has a secret path, as Slack's have."""
    receiver = Receiver(*answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with suppress(OSError):  # the other side gave up
                receiver.answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
