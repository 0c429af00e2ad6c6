"""Receives webhooks and prints each as a line of JSON, with what the reference library says of its signature.

    webhook.py <secret> <answer>[,<answer>…]

Answers are given in turn, the last one for ever: a status, or `silence`. A redirect leads to /elsewhere, and
only /hook takes from the answers. The first line is the port.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

verifier = Webhook(sys.argv[1])
answers = sys.argv[2].split(",")


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            verifier.verify(body, headers)
            verified = True
        except WebhookVerificationError:
            verified = False
        seen = {"path": self.path, "verified": verified, "headers": headers, "body": json.loads(body)}
        print(json.dumps(seen), flush=True)

        answer = "200"
        if self.path.split("?")[0] == "/hook":
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "silence":
            threading.Event().wait()
        self.send_response(int(answer))
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"x" * 1_000_000)  # more than anyone needs to read

    do_GET = do_POST

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
server.daemon_threads = True
server.handle_error = lambda *_: None  # a client that has seen enough
print(server.server_port, flush=True)
server.serve_forever()
