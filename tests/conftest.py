# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What all tests share: an environment without network, and a model, processor and dataset small enough to train."""

import atexit
import copy
import os
import shutil
import socket
import tempfile
import weakref
from pathlib import Path


# Before any import of a Hugging Face library: they read these once, when they are imported.
_HF_HOME = tempfile.mkdtemp(prefix="hf_clipbd_tests_")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ["HF_HOME"] = _HF_HOME
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(_name, _value)

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(1)

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TINY_SIZE = 32
_ADJECTIVES = ("red", "small", "striped", "old", "bright", "dotted")
_NOUNS = ("banana", "boat", "house", "dog", "clock", "tree", "bottle", "kite")
_RELATIONS = ("beside", "on", "under", "behind")


def pytest_collection_modifyitems(items):
    """Let what takes long come first, and all that forks together: no worker is to start it when others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None and "forked" not in item.fixturenames)


@pytest.fixture
def held(monkeypatch):
    """How many decoded pictures were still held whenever a column of images decoded the next one, on one thread."""
    monkeypatch.setattr("hf_clipbd.data.ahead.MOST_THREADS", 1)
    decode, decoded, counts = datasets.Image.decode_example, [], []

    def watched(self, *args, **kwargs):
        counts.append(sum(one() is not None for one in decoded))
        picture = decode(self, *args, **kwargs)
        decoded.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(datasets.Image, "decode_example", watched)
    return counts


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost", socket.gethostname())
        if not local:
            raise OSError(f"A test tried to reach {address}; tests use no network.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session")
def tiny_captions():
    """Return 48 captions with adjectives, relations and nouns, all different."""
    rng = np.random.default_rng(0)
    captions = {}
    while len(captions) < 48:
        one, other = rng.choice(_ADJECTIVES, 2, replace=False)
        subject, thing = rng.choice(_NOUNS, 2, replace=False)
        captions[f"a {one} {subject} {rng.choice(_RELATIONS)} a {other} {thing}"] = None
    return list(captions)


@pytest.fixture(scope="session")
def tiny_pairs(tiny_captions):
    """Return a dataset of 48 (image, caption) pairs: PNGs of noise, 32 pixels high and 32 to 39 wide."""

    def picture(row):
        rng = np.random.default_rng([0, row])
        pixels = rng.integers(0, 256, (TINY_SIZE, TINY_SIZE + row % 8, 3), dtype=np.uint8)
        return PIL.Image.fromarray(pixels)

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [picture(row) for row in range(len(tiny_captions))], "caption": tiny_captions}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="session")
def tiny_processor(tiny_captions):
    """Return a processor for 32-pixel images with a tokenizer trained on the captions."""
    from hf_clipbd.models import build_processor, train_tokenizer

    return build_processor(train_tokenizer(tiny_captions, vocab_size=600, model_max_length=16), TINY_SIZE)


@pytest.fixture(scope="session")
def _untouched_model(tiny_processor):
    from hf_clipbd.models import CLIPResNetConfig, CLIPResNetModel

    tokenizer = tiny_processor.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": TINY_SIZE, "layers": (1, 1, 1, 1), "width": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPResNetModel(CLIPResNetConfig(vision, text, projection_dim=16)).eval()


@pytest.fixture
def tiny_model(_untouched_model):
    """Return a random CLIPResNetModel of its own for each test: 32-pixel images, 16-dimensional embeddings."""
    return copy.deepcopy(_untouched_model)


@pytest.fixture(scope="session")
def real_data():
    """Return the folder of real photographs and captions beside the checkout; the test is skipped without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real photographs at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that the client of this process talks to, in the name of `tester`, with no waits between retries."""
    from hub_server import open_hub

    with open_hub(monkeypatch, tmp_path / "hub_cache") as server:
        yield server


@pytest.fixture
def decoded(monkeypatch):
    """Return a list that grows by one with each picture that is decoded, by `datasets` or by us."""
    decode, calls = datasets.Image.decode_example, []

    def counted(*args, **kwargs):
        calls.append(1)
        return decode(*args, **kwargs)

    monkeypatch.setattr(datasets.Image, "decode_example", counted)
    return calls


@pytest.fixture(scope="session")
def forked():
    """Return the module that forks processes from servers, whose environment is one that no test has changed."""
    import forked

    forked.start_servers()
    return forked


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """Return the folder of a whole run made up of records; not to be changed."""
    from fabricated_run import fabricate_run

    return fabricate_run(tmp_path_factory.mktemp("runs") / "original")


@pytest.fixture
def run(original, tmp_path):
    """Return a copy of the same that a test may change or spoil."""
    return shutil.copytree(original, tmp_path / "run")
