"""Attack a model that only answers over HTTP: a server on this machine stands for it."""

import json
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch

from buckler.data import as_tensors
from buckler.evasion.evaluate import evaluate
from buckler.evasion.square import square
from buckler.subject import demo, load
from buckler.threat import Ball

hidden = demo("digits")


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        with torch.no_grad():
            scores = hidden.model(torch.tensor(inputs)).softmax(1)
        content = json.dumps({"scores": scores.tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *said: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    x, y = as_tensors(hidden.test, 20)
    np.savez(folder / "test.npz", x=x.numpy(), y=y.numpy())
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    (folder / "buckler.toml").write_text(f'[subject]\nname = "over HTTP"\nurl = "{address}"\ntest = "test.npz"\n')
    subject = load(folder)
    trial = evaluate(partial(square, queries=200), subject, ball=Ball("linf", 0.1), rows=20, doubt=False)

server.shutdown()
server.server_close()
print(f"robust accuracy {trial.estimates['robust_accuracy']} after {trial.cost.queries:,} queries ({trial.status})")
