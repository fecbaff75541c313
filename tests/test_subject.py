"""Subjects: files, weights, endpoints, demos; and one sentence for everything that is wrong with them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from buckler import subject as subjects
from buckler.data import as_tensors, digits
from buckler.endpoint import Endpoint, NoAnswer
from buckler.nets import SmallCNN
from buckler.subject import BadSubject, Subject, demo, from_spec, load
from buckler.target import Oracle
from buckler.trial import fingerprint_model

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

def model():
    print("noise")
    torch.manual_seed(7)
    return build().eval()

def rows():
    x = torch.linspace(0, 1, 40).view(10, 1, 2, 2)
    return x, torch.arange(10) % 3

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 10
    def __getitem__(self, row):
        x, y = rows()
        return x[row], int(y[row])

def recipe(data):
    import helpers
    return helpers.made(build)

def broken():
    raise RuntimeError("no such disk")

def number():
    return 3

def empty():
    return torch.zeros(0, 1, 2, 2), torch.zeros(0).long()

def far():
    return 255 * rows()[0], rows()[1]

def three():
    return 1, 2, 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "helpers.py").write_text("def made(build):\n    return build().eval()\n")
    return tmp_path


def write(folder: Path, text: str, rest: str = "") -> Path:
    path = folder / "buckler.toml"
    path.write_text(f'[subject]\nname = "mine"\n{text}\n{rest}')
    return path


def test_a_function_makes_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        folder,
        'model = "mine:model"\ntest = "mine:rows"\ntrain = "mine:Rows"\nnet = "mine:build"\nrecipe = "mine:recipe"',
        '[threat]\nlimits = ["linf:8/255", "l2:0.5"]\n[gate]\nfail_on = "medium"\n'
        "[severity.evasion.robust_accuracy]\nhigh = 0.5\n",
    )
    before = list(sys.path)
    subject = load(path)
    assert sys.path == before
    torch.manual_seed(7)
    wanted = nn.Linear(4, 3)
    assert isinstance(subject.model, nn.Sequential)
    assert torch.equal(subject.model[1].weight, wanted.weight)
    assert len(as_tensors(subject.test)[0]) == 10
    assert subject.train is not None
    assert torch.equal(as_tensors(subject.train)[0], as_tensors(subject.test)[0])
    assert [str(ball) for ball in subject.limits] == ["linf:0.0313725", "l2:0.5"]
    assert subject.gate == "medium"
    assert subject.severity == {"evasion": {"robust_accuracy": {"high": 0.5}}}
    assert subject.recipe is not None
    assert isinstance(subject.recipe(subject.test), nn.Module), "it may import its neighbours when it is called"
    captured = capsys.readouterr()
    assert captured.out == "", "stdout is for results"
    assert "noise" in captured.err
    assert load(folder).name == "mine", "a folder stands for its file"


def test_two_folders_may_use_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(MODULE + f"\ndef who():\n    return {name!r}\n")
        write(tmp_path / name, 'model = "mine:model"\ntest = "mine:rows"\nrecipe = "mine:recipe"')
        (tmp_path / name / "helpers.py").write_text(f"def made(build):\n    return {name!r}\n")
    loaded = [load(tmp_path / name) for name in ("a", "b")]
    answers = [subject.recipe(subject.test) for subject in loaded if subject.recipe]
    assert answers == ["a", "b"]


def test_weights_are_read_with_safetensors(folder: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    save_file(net.state_dict(), folder / "w.safetensors")
    subject = load(write(folder, 'weights = "w.safetensors"\nnet = "mine:build"\ntest = "mine:rows"'))
    assert isinstance(subject.model, nn.Module)
    assert not subject.model.training
    assert torch.equal(subject.model.state_dict()["1.weight"], net.state_dict()["1.weight"])
    torch.save(net.state_dict(), folder / "w.pt")
    again = load(write(folder, 'weights = "w.pt"\nnet = "mine:build"\ntest = "mine:rows"')).model
    assert isinstance(again, nn.Module)
    assert torch.equal(again.state_dict()["1.weight"], net.state_dict()["1.weight"])


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (Path.write_text, (Path("exploded"), "boom"))  # type: ignore[return-value]


def test_no_pickled_code_ever_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"w": Bomb()}, folder / "w.pt")
    (folder / "w.pth").write_bytes(pickle.dumps(Bomb()))
    (folder / "w.pkl").write_bytes(pickle.dumps(Bomb()))
    np.savez(folder / "t.npz", x=np.array([Bomb()], object), y=np.array([0]))
    for weights in ("w.pt", "w.pth", "w.pkl"):
        with pytest.raises(BadSubject, match="safetensors"):
            load(write(folder, f'weights = "{weights}"\nnet = "mine:build"\ntest = "mine:rows"'))
    with pytest.raises(BadSubject, match="arrays x and y of numbers"):
        load(write(folder, 'model = "mine:model"\ntest = "t.npz"'))
    assert not (folder / "exploded").exists()


def test_arrays_in_a_file(folder: Path) -> None:
    np.savez(folder / "t.npz", x=np.array([[0, 51], [255, 0]], np.uint8), y=np.array([1, 0]))
    subject = load(write(folder, 'model = "mine:model"\ntest = "t.npz"'))
    x, y = as_tensors(subject.test)
    assert torch.allclose(x, torch.tensor([[0, 0.2], [1, 0]]))
    assert y.tolist() == [1, 0]


GOOD = 'model = "mine:model"\ntest = "mine:rows"'


@pytest.mark.parametrize(
    ("text", "rest", "says"),
    [
        ('test = "mine:rows"', "", "expected one of model, weights .*, url or encoder, got none of them"),
        (GOOD + '\nurl = "http://a/b"', "", "got model and url"),
        ('model = "mine:model"', "", r"expected \[subject\] test, got nothing: add it"),
        (GOOD + '\nmodle = "x"', "", r"\[subject\] modle is not known: expected 'model'"),
        (GOOD, "[gates]\n", r"\[gates\] is not known: expected 'gate'"),
        (GOOD, '[gate]\nfail_on = "awful"\n', r"\[gate\] fail_on: .*'high'.*, got 'awful'"),
        (GOOD, '[threat]\nlimits = ["linf"]\n', "expected a limit such as linf:8/255"),
        (GOOD, '[severity.evasion.robust_accuracy]\nhigh = "x"\n', "expected a number or false for high"),
        ('model = "mine"\ntest = "mine:rows"', "", "expected 'module:function', got 'mine'"),
        ('model = "absent:model"\ntest = "mine:rows"', "", "no module 'absent'"),
        ('model = "mine:modle"\ntest = "mine:rows"', "", "did you mean 'model'"),
        ('model = "mine:broken"\ntest = "mine:rows"', "", r"raised RuntimeError: no such disk \(mine.py, line \d+\)"),
        ('model = "mine:number"\ntest = "mine:rows"', "", "returns an nn.Module, got int"),
        ('model = "bad:model"\ntest = "mine:rows"', "", "bad cannot be imported: SyntaxError"),
        ('model = "mine:model"\ntest = "mine:number"', "", r"expected a Dataset or \(x, y\), got int"),
        ('model = "mine:model"\ntest = "mine:three"', "", "got tuple of 3"),
        ('model = "mine:model"\ntest = "mine:empty"', "", "at least one row, got none"),
        ('model = "mine:model"\ntest = "mine:far"', "", r"expected inputs in \[0, 1\], got values from 0 to 255"),
        ('model = "mine:model"\ntest = "no.npz"', "", "no.npz, got none: check the path"),
        ('model = "mine:model"\ntest = "bad.npz"', "", "expected arrays x and y of numbers in bad.npz"),
        ('weights = "w.safetensors"\ntest = "mine:rows"', "", "expected net as well"),
        ('weights = "no.safetensors"\nnet = "mine:build"\ntest = "mine:rows"', "", "got none: check the path"),
        ('weights = "bad.safetensors"\nnet = "mine:build"\ntest = "mine:rows"', "", "does not load as such"),
        ('weights = "other.safetensors"\nnet = "mine:build"\ntest = "mine:rows"', "", "Missing key.*1.weight"),
        ('url = "ftp://a"\ntest = "mine:rows"', "", "expected an address such as https://host/path"),
        ('url = "file:///etc/passwd"\ntest = "mine:rows"', "", "expected an address"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder: Path, text: str, rest: str, says: str) -> None:
    (folder / "bad.py").write_text("def model(:\n")
    (folder / "bad.npz").write_bytes(b"PK\x03\x04 cut")
    (folder / "bad.safetensors").write_bytes(b"\xff" * 40)
    save_file({"else": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(BadSubject, match=says) as caught:
        load(write(folder, text, rest))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_toml(folder: Path) -> None:
    with pytest.raises(BadSubject, match="buckler init"):
        load(folder / "buckler.toml")
    (folder / "buckler.toml").write_bytes(b"\xff\xfe[")
    with pytest.raises(BadSubject, match="readable TOML"):
        load(folder)
    (folder / "buckler.toml").write_text("[subject\n")
    with pytest.raises(BadSubject, match="readable TOML"):
        load(folder)
    (folder / "buckler.toml").write_text("")
    with pytest.raises(BadSubject, match=r"expected \[subject\], got nothing"):
        load(folder)


def test_the_starter_file_is_read(folder: Path) -> None:
    text = (Path(subjects.__file__).parent / "starter.toml").read_text()
    (folder / "my_module.py").write_text(MODULE.replace("def model", "def load").replace("def rows", "def test"))
    (folder / "buckler.toml").write_text(text)
    assert load(folder).name == "my-model"
    on = "\n".join(
        line.removeprefix("# ")
        for line in text.splitlines()
        if line.startswith(("# [", "# limits", "# fail", "# high"))
    )
    (folder / "buckler.toml").write_text(f"{text}\n{on}")
    subject = load(folder)
    assert len(subject.limits) == 2
    assert subject.severity == {"evasion": {"robust_accuracy": {"high": 0.5}}}


def test_a_loaded_subject_is_loaded_again_elsewhere(folder: Path) -> None:
    subject = load(write(folder, GOOD))
    spec = json.loads(json.dumps(subject.spec()))
    code = (
        "import json, sys; from buckler.subject import from_spec; "
        "print(from_spec(json.loads(sys.argv[1])).model[1].weight.sum().item())"
    )
    words = [sys.executable, "-c", code, json.dumps(spec)]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    assert isinstance(subject.model, nn.Sequential)
    assert float(said.stdout) == pytest.approx(subject.model[1].weight.sum().item())
    with pytest.raises(BadSubject, match="built in Python"):
        Subject("x", nn.Identity(), (torch.zeros(1, 1), torch.zeros(1).long())).spec()
    with pytest.raises(BadSubject, match="key file or demo"):
        from_spec({"path": "x"})


def test_a_model_goes_to_its_device(folder: Path) -> None:
    subject = load(write(folder, GOOD))
    assert subject.on("cpu").name == "mine"
    with pytest.raises(BadSubject, match="expected a device"):
        subject.on("nowhere")


# An endpoint: a real server on loopback.

Reply = Callable[[list[Any]], tuple[int, Any]]


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"headers": dict(self.headers), "rows": len(body["inputs"]), "time": time.monotonic()})
            status, answer = reply(body["inputs"])
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *said: object) -> None:  # silence
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/predict", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


LINEAR = nn.Linear(4, 3)


def scores(inputs: list[Any]) -> tuple[int, Any]:
    with torch.no_grad():
        return 200, {"scores": LINEAR(torch.tensor(inputs).flatten(1)).softmax(1).tolist()}


def test_an_address_is_a_black_box(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    with serving(scores) as (url, asked):
        text = f'url = "{url}"\nbatch = 4\ntest = "mine:rows"\nheaders = {{ Authorization = "Bearer $SECRET" }}'
        subject = load(write(folder, text))
        assert asked == [], "loading asks nothing"
        oracle = subject.model
        assert isinstance(oracle, Oracle)
        x, _ = as_tensors(subject.test)
        out = oracle(x)
    assert torch.allclose(out, LINEAR(x.flatten(1)).softmax(1), atol=1e-6)
    assert [request["rows"] for request in asked] == [4, 4, 2]
    assert oracle.asked == 10
    assert asked[0]["headers"]["Authorization"] == "Bearer s3cret"


def test_labels_only(folder: Path) -> None:
    def reply(inputs: list[Any]) -> tuple[int, Any]:
        return 200, {"labels": [int(sum(row[0][0]) > 0.5) for row in inputs]}

    with serving(reply) as (url, _):
        subject = load(write(folder, f'url = "{url}"\nanswers = "labels"\ntest = "mine:rows"'))
        oracle = subject.model
        assert isinstance(oracle, Oracle)
        assert oracle.reveals == "labels"
        x, _ = as_tensors(subject.test)
        out = oracle(x)
    assert out.dtype == torch.int64
    assert torch.equal(out, (x[:, 0, 0].sum(1) > 0.5).long())


@pytest.mark.parametrize(
    ("answers", "reply", "says"),
    [
        ("scores", (404, b"no such page"), "got HTTP 404 Not Found no such page"),
        ("scores", (200, b"<html>"), "a JSON object"),
        ("scores", (200, {"labels": [1, 1]}), r'expected \{"scores": \[...\]\}, got labels'),
        ("scores", (200, {"scores": [[1.0, 0.0]]}), "expected 2 rows of scores"),
        ("scores", (200, {"scores": [[1.0, 0.0], [1.0]]}), "the same count for every row"),
        ("scores", (200, {"scores": [[5.0, -3.0], [1.0, 0.0]]}), "probabilities that sum to 1"),
        ("scores", (200, b'{"scores": [[NaN, 0.0], [1.0, 0.0]]}'), "probabilities that sum to 1"),
        ("labels", (200, {"labels": [1]}), "expected 2 labels"),
        ("labels", (200, {"labels": [1, -1]}), "whole numbers from 0"),
        ("labels", (200, {"labels": [1.5, 0.5]}), "whole numbers from 0"),
        ("labels", (200, {"labels": ["cat", "dog"]}), "numbers"),
    ],
)
def test_an_answer_that_is_none_is_named(answers: Any, reply: tuple[int, Any], says: str) -> None:
    with serving(lambda _: reply) as (url, asked):
        with pytest.raises(NoAnswer, match=says) as caught:
            Endpoint(url, answers)(torch.zeros(2, 3))
        assert url in str(caught.value)
        assert len(asked) == 1, "what will not pass is not tried again"


def test_what_passes_is_tried_again_with_longer_pauses() -> None:
    replies = iter([(503, b""), (429, b""), scores([[0.0] * 4])])
    with serving(lambda _: next(replies)) as (url, asked):
        out = Endpoint(url, "scores", wait=0.05)(torch.zeros(1, 4))
    assert out.shape == (1, 3)
    first, second, third = (request["time"] for request in asked)
    assert second - first >= 0.05
    assert third - second >= 0.1


def test_an_endpoint_that_stays_away_is_named() -> None:
    with serving(lambda _: (500, b"boom")) as (url, asked):
        with pytest.raises(NoAnswer, match="HTTP 500 .*boom"):
            Endpoint(url, "scores", tries=2, wait=0.01)(torch.zeros(1, 4))
        assert len(asked) == 2
    with pytest.raises(NoAnswer, match=r"expected an answer within 5 s, got .*refused"):
        Endpoint(url, "scores", timeout=5, tries=2, wait=0.01)(torch.zeros(1, 4))


def test_a_slow_endpoint_times_out() -> None:
    def reply(inputs: list[Any]) -> tuple[int, Any]:
        time.sleep(0.5)
        return scores(inputs)

    with serving(reply) as (url, _), pytest.raises(NoAnswer, match=r"within 0.1 s, got .*timed out"):
        Endpoint(url, "scores", timeout=0.1, tries=1)(torch.zeros(1, 4))


# The demos.


def test_the_digits_demo_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = torch.random.get_rng_state()
    ticks: list[float] = []
    first = demo("digits", tick=lambda done, loss: ticks.append(done))
    assert torch.equal(before, torch.random.get_rng_state())
    assert ticks[-1] == 1.0
    model = first.model
    assert isinstance(model, SmallCNN)
    assert not model.training
    x, y = as_tensors(first.test)
    assert float((model(x).argmax(1) == y).float().mean()) > 0.95
    again = from_spec(first.spec(), tick=lambda done, loss: ticks.append(-1.0)).model
    assert ticks[-1] == 1.0, "the second time nothing is trained"
    assert fingerprint_model(again) == fingerprint_model(model)  # type: ignore[arg-type]


def test_a_damaged_cache_is_made_anew_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = partial(subjects._recipe, net=SmallCNN, epochs=0.5, batch=64, rate=0.1)
    model = subjects._trained("little", recipe, digits(False), None)
    (file,) = tmp_path.glob("buckler/demo/little-*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    mended = subjects._trained("little", recipe, digits(False), None)
    assert fingerprint_model(mended) == fingerprint_model(model)
    assert file.read_bytes() == whole
    subjects._trained("little", partial(recipe, epochs=0.6), digits(False), None)
    assert len(list(tmp_path.glob("buckler/demo/*"))) == 2, "another recipe is another model"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(subjects.train, "fit", lambda model, data, **_: model.eval())
    with pytest.raises(BadSubject, match="set XDG_CACHE_HOME"):
        demo("digits")


def test_an_unknown_demo_is_refused() -> None:
    with pytest.raises(BadSubject, match="expected a demo out of digits, fashion-mnist, got 'mnist'"):
        demo("mnist")


def test_the_fashion_demo_wires_its_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = (torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8), torch.arange(8))
    monkeypatch.setattr(subjects, "fashion_mnist", lambda train, download: small)
    subject = demo("fashion-mnist")
    assert isinstance(subject.model, nn.Module)
    assert subject.model(as_tensors(subject.test)[0]).shape == (8, 10)
    assert len(list(tmp_path.glob("buckler/demo/fashion-mnist-*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model = "mine:model"\ntest = "mine:rows"\n[threat]\nlimits = ["linf:inf"]', "finite radius above 0"),
        ('model = "mine:model"\ntest = "mine:rows"\n[threat]\nlimits = ["l2:1", "l2:2"]', "one limit for l2"),
        ('model = ".mine:model"\ntest = "mine:rows"', "expected 'module:function'"),
        ('model = "more:lazy"\ntest = "mine:rows"', "lazy or meta"),
        ('model = "more:leaves"\ntest = "mine:rows"', "SystemExit: 3"),
        ('model = "mine:model"\ntest = "more:flat"', "at least one element per row"),
        ('model = "mine:model"\ntest = "junk.npz"', "no sound archive.*np.savez"),
        ('weights = "keys.pt"\nnet = "mine:build"\ntest = "mine:rows"', "state_dict.*got dict with 1"),
        ('url = "http://host:port/"\ntest = "mine:rows"', "expected an address"),
        ('url = "http://host/"\nheaders = { A = "$NOT_THERE" }\ntest = "mine:rows"', "NOT_THERE in the environment"),
    ],
)
def test_what_a_customer_broke_it_with(folder: Path, text: str, says: str) -> None:
    (folder / "more.py").write_text(
        "import torch\ndef lazy():\n    return torch.nn.LazyLinear(2)\ndef leaves():\n    raise SystemExit(3)\n"
        "def flat():\n    return torch.zeros(4, 1, 0), torch.arange(4)\n"
    )
    (folder / "junk.npz").write_bytes(b"junk")
    torch.save({1: torch.ones(1)}, folder / "keys.pt")
    with pytest.raises(BadSubject, match=says):
        load(write(folder, text))


def test_other_precisions_and_byte_orders_are_measured_in_float32(folder: Path) -> None:
    (folder / "more.py").write_text("import mine\ndef double():\n    return mine.model().double()\n")
    np.savez(folder / "big.npz", x=np.zeros((4, 1, 2, 2), ">f4"), y=np.arange(4, dtype=">i4") % 3)
    subject = load(write(folder, 'model = "more:double"\ntest = "big.npz"'))
    assert isinstance(subject.model, nn.Module)
    assert subject.model(as_tensors(subject.test)[0]).dtype == torch.float32


def test_arrays_that_cannot_be_written_to_are_copied_without_a_word(folder: Path, recwarn: Any) -> None:
    (folder / "more.py").write_text(
        "import numpy as np\nX, Y = np.full((4, 1, 2, 2), 0.5, 'f4'), np.arange(4)\nX.flags.writeable = False\n"
        "Y.flags.writeable = False\ndef fixed():\n    return X, Y\n"
    )
    x, y = as_tensors(load(write(folder, 'model = "mine:model"\ntest = "more:fixed"')).test)
    assert (float(x.min()), y.tolist()) == (0.5, [0, 1, 2, 3])
    assert not [warned for warned in recwarn if "writ" in str(warned.message)]


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(NoAnswer) as told:
        Endpoint("http://me:secret@127.0.0.1:1/p?token=abc", "scores", tries=1)(torch.zeros(1, 2))
    assert "secret" not in str(told.value)
    assert "abc" not in str(told.value)
