"""An encoder of the user's own: from a function, weights, a folder of Hugging Face's, or an address; and one sentence
for every one that is none."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from buckler import audit as audits
from buckler import plan as plans
from buckler import pretrained
from buckler.catalog import find
from buckler.cli import main
from buckler.data import as_tensors
from buckler.embedding import Probed, embedded, headed, probed
from buckler.encoders.evaluate import evaluate
from buckler.endpoint import Endpoint, NoAnswer
from buckler.huggingface import Seen, hugging_face, untrained
from buckler.imported import BadSubject
from buckler.prints import fingerprints, lessons
from buckler.subject import Subject, load
from buckler.target import Oracle
from buckler.threat import Ball, Share
from buckler.train import fit, started
from buckler.trial import fingerprint_model

MODULE = """
import torch
from torch import nn

def body():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU())

def encoder():
    torch.manual_seed(3)
    return body().eval()

def rows(seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(120, 1, 4, 4, generator=draw)
    return x, (x[:, 0, 0, 0] > x[:, 0, 1, 1]).long()

def train():
    return rows(1)

def alike():
    return rows(1)[0], torch.full((120,), 4)

class Answers(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.inner = how, encoder()
    def forward(self, x):
        return self.how(self.inner(x))

def mapped():
    return Answers(lambda out: out[:, :, None, None])

def collapsed():
    return Answers(lambda out: 0 * out + 3)

def broken():
    return Answers(lambda out: out / 0 * 0)

def table():
    return Answers(lambda out: {"last_hidden_state": out})

def pair():
    return Answers(lambda out: (out, out))

def other_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6))

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
"""
PLAN = """
title = "tiny"
rows = 60
[limits]
linf = 0.1
[[trial]]
method = "encoders/simclr"
encoder_steps = 4
batch = 16
"""
SUBJECT = 'encoder = "mine:encoder"\ntest = "mine:rows"\ntrain = "mine:train"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "tiny.toml").write_text(PLAN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    audits._subject.cache_clear()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "buckler.toml"
    path.write_text(f'[subject]\nname = "mine"\n{text}')
    return path


def test_an_encoder_alone_becomes_a_classifier_by_a_probe(folder: Path) -> None:
    subject = load(write(folder, SUBJECT + 'body = "mine:body"'))
    assert isinstance(subject.encoder, nn.Module)
    assert isinstance(subject.model, Probed)
    assert subject.model.encoder is subject.encoder
    x, y = as_tensors(subject.test)
    assert float((subject.model(x).argmax(1) == y).float().mean()) > 0.75, "chance is a half"
    assert subject.body is not None
    assert isinstance(subject.body(), nn.Module)
    assert subject.on("cpu").encoder is subject.encoder


def test_a_probe_is_learnt_once_for_one_encoder_and_its_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(write(folder, SUBJECT)).model
    (file,) = folder.glob("cache/buckler/probes/*.safetensors")
    assert isinstance(first, nn.Module)
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    again = load(folder).model
    assert file.read_bytes() == whole, "a damaged one is made anew, and the same"
    assert isinstance(again, nn.Module)
    assert fingerprint_model(again) == fingerprint_model(first)
    monkeypatch.setattr(pretrained, "probed", lambda *_: pytest.fail("it was in the cache"))
    load(folder)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "mine.py").write_text(MODULE.replace("nn.ReLU", "nn.Tanh"))
    sys.modules.pop("mine")
    load(folder)
    assert len(list(folder.glob("cache/buckler/probes/*.safetensors"))) == 2, "another encoder, another probe"


def test_every_area_says_of_which_encoder_its_trials_are(folder: Path) -> None:
    subject = replace(load(write(folder, SUBJECT)), train=None)
    wanted = audits._identity(subject, 20)["model"]
    for path, asked in (
        ("evasion/fgsm", {"ball": Ball("linf", 0.1)}),
        ("poisoning/badnets", {"share": Share(0.5)}),
        ("privacy/loss_threshold", {}),
        ("theft/knockoff", {}),
        ("encoders/simclr", {}),
    ):
        evaluate = import_module(f"buckler.{path.partition('/')[0]}.evaluate").evaluate
        assert evaluate(find(path), subject, rows=20, **asked).subject["model"] == wanted, path


def test_a_trial_of_an_encoder_is_run_anew_where_it_would_learn_from_other_rows(folder: Path) -> None:
    subject = load(write(folder, SUBJECT + 'body = "mine:body"'))
    rows = [{"method": "encoders/simclr"}, {"method": "encoders/feature_pgd", "ball": "linf"}]
    rows += [{"method": "evasion/fgsm", "ball": "linf"}]
    plan = plans.valid({"title": "t", "rows": 10, "limits": {"linf": 0.1}, "trial": rows}, "t")
    todo, same = plans.jobs(plan, {}), audits._identity(subject, 10)
    before, after = (fingerprints(todo, one, same) for one in (subject, replace(subject, train=subject.test)))
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True], "the model stays as it is"


def test_weights_of_an_encoder_go_into_its_body(folder: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU())
    save_file(net.state_dict(), folder / "e.safetensors")
    text = 'encoder = "e.safetensors"\ntest = "mine:rows"\ntrain = "mine:train"\n'
    found = load(write(folder, text + 'body = "mine:body"')).encoder
    assert isinstance(found, nn.Module)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(embedded(found, x), net(x).detach())
    with pytest.raises(BadSubject, match="expected body as well"):
        load(write(folder, text))


def test_a_model_of_one_s_own_stays_the_model(folder: Path) -> None:
    subject = load(write(folder, SUBJECT + 'model = "mine:net"'))
    assert not isinstance(subject.model, Probed)
    assert isinstance(subject.encoder, nn.Module)


def test_the_encoder_is_part_of_what_a_run_is_of(folder: Path) -> None:
    first = load(write(folder, SUBJECT + 'model = "mine:net"'))
    none = load(write(folder, SUBJECT.partition("\n")[2] + 'model = "mine:net"\nbody = "mine:body"'))
    assert isinstance(first.encoder, nn.Module)
    torch.manual_seed(0)
    model = first.model
    before, known = audits._identity(first, 20), lessons(first)
    with torch.no_grad():
        next(first.encoder.parameters()).add_(0.1)
    after = audits._identity(first, 20)
    assert first.model is model
    assert {key: before[key] == after[key] for key in before} == {"name": True, "model": False, "data": True}
    assert len({known, lessons(first), lessons(none)}) == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mapped", r"expected \(B, D\) features .* got \(64, 24, 1, 1\): flatten the answer, or pool it"),
        ("collapsed", "the features of 64 rows are one point, .*: the encoder collapsed"),
        ("broken", "100% of rows answer NaN or Inf: mend the encoder"),
        ("table", "expected a tensor of features from the encoder, got a dict: return the features"),
        ("pair", "expected a tensor of features from the encoder, got a tuple"),
        ("other_size", r"the encoder raises RuntimeError on a batch of \(64, 1, 4, 4\): .* another size, .* resize"),
    ],
)
@pytest.mark.parametrize("model", ["", 'model = "mine:net"\n'])
def test_an_encoder_that_is_none_is_one_sentence(folder: Path, name: str, says: str, model: str, capsys: Any) -> None:
    write(folder, SUBJECT.replace("mine:encoder", f"mine:{name}") + model)
    assert main(["audit", "--plan", "tiny.toml", "--display", "none", "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"buckler: .*{says}.*\n", said, re.IGNORECASE)
    assert not (folder / "run").exists(), "nothing was begun, and nothing is lost"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('encoder = "mine:encoder"\ntest = "mine:rows"', "train with labels from which a probe .* add train"),
        (SUBJECT.replace("mine:train", "mine:alike"), "labels of at least two classes .* got 4 on all 120 rows"),
        (SUBJECT.replace("mine:rows", "mine:alike"), "all 120 rows have the label 4"),
        ('model = "mine:net"\ntest = "mine:rows"', "expected an encoder, or what one is pre-trained from, got a class"),
        ('model = "mine:net"\ntest = "mine:rows"\ntrain = "mine:train"', "got a classifier alone: add encoder"),
        (SUBJECT.replace("mine:encoder", "absent"), "expected 'module:function', a .safetensors file, or a folder"),
        (SUBJECT.replace("mine:encoder", "mine:rows"), "returns an nn.Module, got tuple of 2"),
        (SUBJECT + 'url = "http://a/b"\nanswers = "features"', "expected one of encoder or url .* got both"),
    ],
)
def test_what_an_encoder_lacks_is_one_sentence(folder: Path, text: str, says: str, capsys: Any) -> None:
    write(folder, text)
    assert main(["audit", "--plan", "tiny.toml", "--rows", "60", "--display", "none", "--out", "run"]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said, re.IGNORECASE), said
    assert said.count("\n") == 1


def test_a_plan_of_encoders_runs_on_it_and_continues(folder: Path, capsys: Any) -> None:
    write(folder, SUBJECT + 'body = "mine:body"')
    words = ["audit", "--plan", "tiny.toml", "--display", "none", "--out", "run"]
    first = main(words)
    assert first in (0, 1, 3)
    trials = {path: path.stat().st_mtime_ns for path in folder.glob("run/trials/*/trial.json")}
    assert len(trials) == 1
    assert main(words) == first
    assert {path: path.stat().st_mtime_ns for path in folder.glob("run/trials/*/trial.json")} == trials
    (folder / "mine.py").write_text(MODULE.replace("manual_seed(3)", "manual_seed(4)"))
    sys.modules.pop("mine")
    audits._subject.cache_clear()
    capsys.readouterr()
    assert main(words) == 2
    assert "the weights changed" in capsys.readouterr().err


# Encoder as a service: a real server on loopback.

LINEAR = nn.Linear(16, 5)


@pytest.fixture
def service() -> Iterator[tuple[str, list[int]]]:
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            asked.append(len(inputs))
            with torch.no_grad():
                content = json.dumps({"features": LINEAR(torch.tensor(inputs).flatten(1)).tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *said: object) -> None:  # silence
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/embed", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_encoder_at_an_address_is_asked_and_counted(folder: Path, service: Any, capsys: Any) -> None:
    url, asked = service
    text = f'url = "{url}"\nanswers = "features"\ntest = "mine:rows"\ntrain = "mine:train"\n'
    subject = load(write(folder, text))
    assert asked == [], "loading asks nothing"
    assert subject.model is subject.encoder
    assert isinstance(subject.encoder, Oracle)
    x, _ = as_tensors(subject.test)
    out = embedded(subject.encoder, x)
    assert torch.allclose(out, LINEAR(x.flatten(1)).detach(), atol=1e-6)
    assert subject.encoder.asked == sum(asked) == 120
    assert subject.on("cpu").model is subject.encoder
    assert main(["run", "evasion/hop_skip_jump", "--ball", "l2:1", "--display", "none"]) == 2
    assert "got an encoder that can only be asked: add a model" in capsys.readouterr().err
    write(folder, text + 'model = "mine:net"\n')
    assert isinstance(load(folder).model, nn.Module)


def test_what_an_encoder_answered_is_kept_apart_from_what_a_model_did(folder: Path) -> None:
    """Of a trial that was stopped: what was paid for is not asked again, of the one nor of the other."""
    x, asked = torch.rand(6, 1, 4, 4), list[str]()

    def oracle(name: str, layer: nn.Module) -> Oracle:
        return Oracle(lambda rows: (asked.append(name), layer(rows.flatten(1)))[1], "features")

    model, encoder = oracle("model", nn.Linear(16, 3)), oracle("encoder", nn.Linear(16, 5))
    subject = replace(load(write(folder, SUBJECT + 'model = "mine:net"')), model=model, encoder=encoder)
    for _ in range(2):
        kept = audits._remembering(subject, folder / "paid.answers")
        assert isinstance(kept.encoder, Oracle)
        assert kept.encoder(x).shape == (6, 5)
        assert kept.model(x).shape == (6, 3)
    assert asked == ["encoder", "model"]
    assert model.asked == encoder.asked == 12
    alone = audits._remembering(replace(subject, model=encoder), folder / "other.answers")
    assert alone.model is alone.encoder


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"features": [1.0, 2.0]}', "expected 2 rows of features, as many numbers in each"),
        ('{"features": [[1.0], [NaN]]}', "expected finite features"),
        ('{"features": [[1.0], [1.0, 2.0]]}', "the same count for every row"),
        ('{"scores": [[1.0], [1.0]]}', r'expected \{"features": \[...\]\}, got scores'),
    ],
)
def test_features_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch, answer: str, says: str) -> None:
    monkeypatch.setattr(Endpoint, "_post", lambda *_: answer.encode())
    with pytest.raises(NoAnswer, match=says):
        Endpoint("http://a/b", "features")(torch.zeros(2, 3))


# A folder of Hugging Face's.

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def vit(transformers: Any, **more: Any) -> Any:
    return transformers.ViTConfig(**SMALL, image_size=8, **more)


def test_a_head_begins_above_the_encoder_which_stays_as_it_was() -> None:
    x, y = torch.rand(40, 1, 4, 4), torch.arange(40) % 3
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU()).requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    net = headed(encoder, x, classes=3)
    first, again, other = (started(net, seed).eval() for seed in (0, 0, 1))
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    assert torch.equal(nn.Sequential(*first.children())[0](x), encoder(x))
    learnt = fit(first, (x, y), epochs=2, seed=0)
    assert not torch.equal(nn.Sequential(*learnt.children())[0](x), encoder(x))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    encoder.to("meta")
    assert {part.device.type for part in net().state_dict().values()} == {"meta"}, "on another device all of it is"


def test_another_encoder_is_built_as_a_folders(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.ViTModel(vit(transformers)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.2] * 3}))
    own, fresh, again = hugging_face(tmp_path), *(started(lambda: untrained(tmp_path), seed) for seed in (1, 1))
    x = torch.rand(3, 3, 8, 8)
    assert fresh(x).shape == own(x).shape
    assert torch.equal(fresh(x), again(x))
    assert torch.equal(dict(fresh.named_buffers())["mean"], dict(own.named_buffers())["mean"])
    assert not torch.allclose(fresh(x), own(x), atol=1e-3)


def test_whoever_brings_a_folder_is_told_how_to_build_another(transformers: Any, tmp_path: Path) -> None:
    transformers.ViTModel(vit(transformers)).save_pretrained(tmp_path)
    data = torch.rand(60, 3, 8, 8), torch.arange(60) % 3
    encoder = hugging_face(tmp_path)
    given = Subject("vit", probed(encoder, data), data, train=data, encoder=encoder)
    for path in ("encoders/distill", "encoders/simclr"):
        made = evaluate(find(path), given)
        assert made.status == "skipped"
        assert "let `body` return buckler.huggingface.untrained" in made.reason
    made = evaluate(find("encoders/simclr"), replace(given, encoder=nn.Flatten(), model=nn.Linear(3, 3)))
    assert "huggingface" not in made.reason


def test_a_vision_transformer_is_resized_and_normalised_inside(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.ViTModel(vit(transformers)).eval()
    model.save_pretrained(tmp_path / "vit")
    x = torch.rand(5, 3, 8, 8)
    plain = hugging_face(tmp_path / "vit")
    assert not plain.training
    assert torch.allclose(plain(x), model(x).pooler_output, atol=1e-6)
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(said))
    normal = hugging_face(tmp_path / "vit")
    moved = torch.stack([(x[:, c] - said["image_mean"][c]) / said["image_std"][c] for c in range(3)], 1)
    assert torch.allclose(normal(x), model(moved).pooler_output, atol=1e-5)
    flat = torch.full((2, 1, 28, 20), 0.25)  # grey, larger, and no square: the same as the small one
    assert torch.allclose(normal(flat), normal(torch.full((2, 3, 8, 8), 0.25)), atol=1e-5)
    x.requires_grad_()
    normal(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any()), "it can be attacked with gradients"
    with pytest.raises(ValueError, match="images of 3 channels"):
        normal(torch.rand(1, 2, 8, 8))


def test_a_pooler_that_was_never_trained_is_not_used(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(vit(transformers, num_channels=1)).eval()
    model.save_pretrained(tmp_path / "classifier")
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        wanted = model.vit(pixel_values=x).last_hidden_state[:, 0]
    found = [hugging_face(tmp_path / "classifier") for _ in range(2)]
    assert torch.allclose(found[0](x), wanted, atol=1e-6), "the class token"
    assert fingerprint_model(found[0]) == fingerprint_model(found[1]), "what is drawn is drawn alike"
    file = tmp_path / "classifier" / "model.safetensors"
    weights = load_file(file)
    (lost,) = [name for name in weights if name.endswith("cls_token")]
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(BadSubject, match="got none for 1 tensors, such as .*cls_token"):
        hugging_face(tmp_path / "classifier")


def _towers(transformers: Any) -> Iterator[tuple[Any, Callable[[Any, Tensor], Tensor]]]:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text |= {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    seen = transformers.CLIPVisionConfig(**SMALL, image_size=8, projection_dim=6)
    both = transformers.CLIPConfig(text_config=text, vision_config=seen.to_dict(), projection_dim=6)
    yield transformers.CLIPVisionModel(seen), lambda m, x: m(pixel_values=x).pooler_output
    yield transformers.CLIPVisionModelWithProjection(seen), lambda m, x: m(pixel_values=x).image_embeds
    yield transformers.CLIPModel(both), lambda m, x: m.visual_projection(m.vision_model(pixel_values=x).pooler_output)
    wide = transformers.Dinov2Config(**SMALL, image_size=16)  # which takes other sizes: its processor's, of 8
    yield transformers.Dinov2Model(wide), lambda m, x: m(pixel_values=x).pooler_output
    small = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    yield transformers.ResNetModel(small), lambda m, x: m(x).last_hidden_state.mean((2, 3))


def test_towers_and_convolutions_give_what_they_are_used_for(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 8, 8)
    for place, (model, wanted) in enumerate(_towers(transformers)):
        model.eval().save_pretrained(tmp_path / str(place))
        said = {"do_normalize": False, "image_mean": [9, 9, 9], "crop_size": {"height": 8, "width": 8}, "size": 12}
        (tmp_path / str(place) / "preprocessor_config.json").write_text(json.dumps(said))
        found = hugging_face(tmp_path / str(place))
        assert isinstance(found, Seen)
        with torch.no_grad():
            assert torch.allclose(found(x), wanted(model, x), atol=1e-5), type(model).__name__


def test_a_folder_that_cannot_be_used_is_one_sentence(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(says: str) -> None:
        with pytest.raises(BadSubject, match=says) as caught:
            hugging_face(tmp_path)
        assert "\n" not in str(caught.value)

    refused("expected a config.json in .*, got none")
    (tmp_path / "config.json").write_text("[")
    refused("expected model.safetensors in .*, got none")
    torch.save({}, tmp_path / "pytorch_model.bin")
    refused("got pytorch_model.bin, which is pickled and is not opened")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    refused("expected settings as JSON")
    (tmp_path / "config.json").write_text("[]")
    refused("expected settings as a JSON object")
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}}')
    (tmp_path / "code.py").write_text("raise SystemExit('code of the folder ran')")
    refused("expected a folder that transformers .* loads")
    for architecture in ("NoVisionModelWithProjection", 5):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": [architecture]}))
        refused("expected a folder that transformers .* loads")
    index = tmp_path / "model.safetensors.index.json"
    for name in ("pytorch_model.bin", "../model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        refused(f"expected safetensors files beside it in the weight_map of .*, got {name}")
    index.write_text('{"weight_map": []}')
    refused("expected safetensors files beside it in the weight_map of .*, got none")
    index.unlink()
    bert = transformers.BertConfig(**{**SMALL, "vocab_size": 30, "patch_size": None})
    transformers.BertModel(bert).save_pretrained(tmp_path)
    refused("expected a model of images in .*, got a BertModel of input_ids")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    refused("expected a folder that transformers .* loads")
    monkeypatch.setattr("buckler.huggingface.find_spec", lambda _: None)
    refused("expected the package transformers .* pip install")


def test_a_folder_is_an_encoder_in_a_subject(transformers: Any, folder: Path, capfd: Any) -> None:
    torch.manual_seed(0)
    transformers.ViTForImageClassification(vit(transformers)).save_pretrained(folder / "vit")
    capfd.readouterr()
    subject = load(write(folder, SUBJECT.replace("mine:encoder", "vit")))
    assert capfd.readouterr() == ("", ""), "what transformers says of weights that are missing is not passed on"
    assert isinstance(subject.model, Probed)
    x, _ = as_tensors(subject.test)
    assert subject.model(x).shape == (120, 2)
    assert main(["run", "encoders/simclr", "--rows", "40", "--display", "none"]) == 3
    assert "give the subject `train` and `body`" in capfd.readouterr().out
