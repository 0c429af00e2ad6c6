"""Receives webhooks and prints each as a line of JSON, with what the reference library says of its signature.

    webhook.py <secret> <answer>[,<answer>…]

Answers are given in turn, the last one for ever: a status, `<status>/<Retry-After>` (where `in3` is the date in three
seconds), or `silence`. A redirect leads to /elsewhere, and only /hook takes from the answers. `PUT /answers` with
`{"<job>": "<answer>", …}` says what events of these jobs are answered instead, from now on. The first line is the port.
"""

import email.utils
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

verifier = Webhook(sys.argv[1])
answers = sys.argv[2].split(",")
answers_by_job = {}


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            verifier.verify(body, headers)
            verified = True
        except WebhookVerificationError:
            verified = False
        content = json.loads(body)
        job = content.get("data", {}).get("job_id")
        answer = "200"
        if job in answers_by_job:
            answer = answers_by_job[job]
        elif self.path.split("?")[0] == "/hook":
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        seen = {"path": self.path, "verified": verified, "headers": headers, "body": content}
        print(json.dumps(seen | {"answer": answer, "at": time.time()}), flush=True)

        if answer == "silence":
            threading.Event().wait()
        status, _, retry_after = answer.partition("/")
        self.send_response(int(status))
        if retry_after.startswith("in"):
            retry_after = email.utils.formatdate(time.time() + int(retry_after[2:]), usegmt=True)
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"x" * 1_000_000)  # more than anyone needs to read

    do_GET = do_POST

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answers_by_job.clear()
        answers_by_job.update(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
server.daemon_threads = True
server.handle_error = lambda *_: None  # a client that has seen enough
print(server.server_port, flush=True)
server.serve_forever()
