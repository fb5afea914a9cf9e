import threading
import time

import hub_server
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import close_session

import random_models
from transpector.state import hub
from transpector.state.catalogue import Entry, resolve
from transpector.state.errors import Cancelled, ModelError
from transpector.state.loading import load_weights
from transpector.state.spec import describe


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    good = random_models.save("llama", directory / "good")
    for extra in ("pytorch_model.bin", "onnx.pt", "consolidated.safetensors", "README.md"):
        (good / extra).write_bytes(b"not wanted")
    pickle = random_models.save("gpt2", directory / "pickle")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    quantised = directory / "quantised"
    quantised.mkdir()
    (quantised / "a.Q4_0.gguf").write_bytes(b"GGUF")
    bare = random_models.save("gpt2", directory / "bare")
    (bare / "config.json").unlink()
    return {"t/good": good, "t/gated": good, "t/pickle": pickle, "t/quantised": quantised, "t/bare": bare}


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """Whatever the environment of these tests says: the hub that they ask is one of their own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def asked(models, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    with hub_server.serving(models, gated=frozenset({"t/gated"})) as (address, files):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield files
        # Else its connections are found open, and warned of, in some later test.
        close_session()


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        describe(Entry(name, "hub"))
    return str(caught.value)


def test_a_hub_model_is_known_before_its_weights_are_fetched(asked, models):
    described = describe(Entry("t/good", "hub"))
    local = describe(resolve(models["t/good"]))
    assert (described.n_layers, described.architecture) == (local.n_layers, local.architecture)
    assert described.n_params == pytest.approx(local.n_params, rel=0.05)
    assert asked == ["config.json"]


def test_a_hub_model_loads_and_is_local_from_then_on(asked, models):
    told = []
    model, tokenizer, _ = load_weights(
        Entry("t/good", "hub"), "cpu", "float32", lambda *step: told.append(step), lambda: False
    )
    expected = random_models.random_model("llama").state_dict()
    assert all(weight.equal(expected[name]) for name, weight in model.state_dict().items())
    assert tokenizer("Paris").input_ids == random_models.tokenizer()("Paris").input_ids
    assert set(asked) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shares = [fraction for what, fraction in told if what.startswith("downloading")]
    assert shares == sorted(shares) and len(shares) > 10 and shares[-1] == pytest.approx(1.0, rel=0.01)
    assert any(what.endswith("MB") for what, _ in told)
    assert resolve("t/good").source == "cache"


def test_a_download_can_be_stopped_and_taken_up_again(asked):
    told = []

    def progress(what: str, fraction: float | None) -> None:
        told.append((what, fraction))

    def cancelled() -> bool:
        return any("MB" in what and fraction > 0.3 for what, fraction in told)

    with pytest.raises(Cancelled):
        load_weights(Entry("t/good", "hub"), "cpu", "float32", progress, cancelled)
    assert max(fraction for what, fraction in told if "MB" in what) < 0.9
    assert resolve("t/good").source == "hub"
    load_weights(Entry("t/good", "hub"), "cpu", "float32", lambda *_: None, lambda: False)
    assert not constants.HF_HUB_DISABLE_XET


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t/absent", "The hub has no model t/absent"),
        ("t/gated", "accept its conditions"),
        ("t/pickle", "Convert them to safetensors"),
        ("t/quantised", "GGUF files only: a.Q4_0.gguf"),
        ("t/bare", "no config.json"),
    ],
)
def test_what_the_hub_cannot_give_is_explained(asked, name, words):
    assert words in refusal(name)


def test_without_a_network_it_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert "can't be reached" in refusal("some/model")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("call", ["getaddrinfo", "create_connection"])
def test_a_network_that_never_answers_is_given_up_on(tmp_path, monkeypatch, call):
    released = threading.Event()

    def silence(*_, **__):
        released.wait(20)
        raise TimeoutError

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(hub.socket, call, silence)
    monkeypatch.setattr(hub, "_PATIENCE", 0.3)
    start = time.monotonic()
    assert not hub.reachable()
    assert time.monotonic() - start < 3
    released.set()


def test_offline_mode_is_obeyed(asked, monkeypatch):
    assert hub.reachable()
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    assert not hub.reachable()


def test_a_proxy_is_what_has_to_answer(asked, monkeypatch):
    address = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"http": address})
    assert hub.reachable()


def test_a_connection_that_breaks_is_a_clear_error(asked, monkeypatch):
    def broken(*_, **__):
        raise ConnectionResetError("Connection reset by peer")

    listing = hub.look_up("t/good")
    monkeypatch.setattr(file_download, "http_get", broken)
    with pytest.raises(ModelError, match=r"reset by peer. Try again"):
        hub.download(listing, lambda *_: None, lambda: False)


@pytest.mark.network
def test_the_real_hub_answers():
    if not hub.reachable():
        pytest.skip("needs the internet")
    described = describe(Entry("openai-community/gpt2", "hub"))
    assert (described.n_layers, described.n_heads, described.d_mlp) == (12, 12, 3072)
    assert described.n_params == pytest.approx(124_439_808, rel=0.12)
