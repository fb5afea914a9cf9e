"""A site is read as it is printed, names a part of an activation, and says clearly what it can't be."""

import re

import pytest

from transpector.state.errors import SiteError
from transpector.state.sites import AXES, KINDS, Site, sites
from transpector.state.spec import ModelSpec

SPEC = ModelSpec(
    name="a model",
    architecture="any",
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_model=48,
    d_head=12,
    d_mlp=80,
    d_vocab=512,
    n_ctx=128,
    n_params=0,
    dtype="float32",
    device="cpu",
    bytes_needed=0,
    bytes_free=0,
)

PRINTED = {
    "L5H1.z": Site("z", 5, 1),
    "L9.mlp_out": Site("mlp_out", 9),
    "L2.resid_pre@-1": Site("resid_pre", 2, position=-1),
    "L5N311.mlp_post@3": Site("mlp_post", 5, neuron=311, position=3),
    "embed": Site("embed"),
    "embed@0": Site("embed", position=0),
    "L0H0.pattern@2:5": Site("pattern", 0, 0, position=(2, 5)),
    "L0.k@:5": Site("k", 0, position=(None, 5)),
    "L0.k@-3:": Site("k", 0, position=(-3, None)),
    "L0.k@:": Site("k", 0, position=(None, None)),
    "L12N0.mlp_pre": Site("mlp_pre", 12, neuron=0),
    "L5D37.resid_pre": Site("resid_pre", 5, dim=37),
    "D37.embed": Site("embed", dim=37),
    "L9D4.mlp_out@-1": Site("mlp_out", 9, position=-1, dim=4),
    "L0D0.attn_out@2:": Site("attn_out", 0, position=(2, None), dim=0),
}


@pytest.mark.parametrize(("text", "site"), PRINTED.items())
def test_a_site_is_read_as_it_is_printed(text, site):
    assert Site.parse(text) == site
    assert str(site) == text
    assert Site.parse(f"  {text} ") == site
    assert Site.parse(site) is site


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_site_comes_back_from_its_text(kind):
    for site in sites(SPEC, kind):
        for position in (None, 0, -1, (1, 4), (None, -2)):
            placed = Site(site.kind, site.layer, site.head, position=position)
            assert Site.parse(str(placed)) == placed


BAD = {
    "": "'' is no site. Write it like L5H1.z",
    "nonsense!": "'nonsense!' is no site",
    "L5H1": "is no site",
    "L5H1.z@": "is no site",
    "L5H1N3.z": "is no site",
    "L-1.z": "is no site",
    "l5h1.z": "is no site",
    "L5H1.z@1:2:3": "is no site",
    "L5H1.z@x": "is no site",
    "L1.brain": "'brain' is no kind of site. Use one of: embed, resid_pre, q",
    "z": "z needs a layer, as in 'L0.z'",
    "L0.embed": "embed has no layer: write it as 'embed'",
    "L0H1.resid_pre": "resid_pre has no heads: write 'L0.resid_pre'",
    "L0H1.mlp_post": "mlp_post has no heads",
    "L0N1.z": "z has no neurons: only mlp_pre and mlp_post do",
    "L0D1.z": "z has no dimensions of the residual stream: only embed, resid_pre, attn_out, resid_mid, mlp_out do",
    "L0D1.mlp_post": "mlp_post has no dimensions",
    "D1.resid_pre": "resid_pre needs a layer, as in 'L0.resid_pre'",
    "L0D1.embed": "embed has no layer",
    "L0H1D3.z": "is no site",
    "L0D-1.resid_pre": "is no site",
    "H1.z": "is no site",
    "L.z": "is no site",
    ".embed": "is no site",
    "<img src=x onerror=alert(1)>": "is no site",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_what_is_no_site_is_refused_with_the_right_form(text, message):
    with pytest.raises(SiteError) as refused:
        Site.parse(text)
    assert message in str(refused.value)


@pytest.mark.parametrize("value", [None, 5, ["L0.z"]])
def test_what_is_no_text_is_no_site(value):
    with pytest.raises(SiteError, match="is no site"):
        Site.parse(value)


def test_a_refusal_quotes_no_more_than_a_line():
    with pytest.raises(SiteError) as refused:
        Site.parse("x!" * 10_000)
    assert len(str(refused.value)) < 250


OUT_OF_RANGE = {
    "L3.z": "L3.z: this model has layers 0 to 2, not 3.",
    "L0H4.z": "L0H4.z: a layer of this model has heads 0 to 3, not 4.",
    "L0H2.k": "L0H2.k: a layer of this model has key-value heads 0 to 1, not 2.",
    "L0H3.v": "key-value heads 0 to 1",
    "L0N80.mlp_post": "L0N80.mlp_post: a layer of this model has neurons 0 to 79, not 80.",
    "L0D48.attn_out": "L0D48.attn_out: this model has dimensions 0 to 47, not 48.",
    "D48.embed": "dimensions 0 to 47, not 48",
    "L0.z@7": "L0.z@7: this text has positions 0 to 6, not 7.",
    "embed@-8": "this text has positions 0 to 6, not -8.",
    "L0.pattern@7": "this text has positions 0 to 6",
    "L0.z@7:9": "L0.z@7:9: no position of this text of 7 tokens lies in that range.",
    "L0.z@3:3": "lies in that range",
    "L0.z@5:2": "lies in that range",
}


@pytest.mark.parametrize(("text", "message"), OUT_OF_RANGE.items())
def test_a_site_out_of_range_is_named_with_the_range(text, message):
    with pytest.raises(SiteError) as refused:
        Site.parse(text).check(SPEC, 7)
    assert message in str(refused.value)


NEGATIVE = [Site("z", -1), Site("z", 0, -1), Site("mlp_post", 0, neuron=-1), Site("embed", dim=-1)]


@pytest.mark.parametrize("site", NEGATIVE, ids=str)
def test_layers_heads_neurons_and_dimensions_do_not_count_from_the_end(site):
    with pytest.raises(SiteError, match="not -1"):
        site.check(SPEC, 7)


WITHIN = ["L2H3.z@6", "L0H1.k@-7", "L2N79.mlp_pre", "L2D47.resid_mid@6", "L0.z@-3:", "L0.z@6:99", "embed"]


@pytest.mark.parametrize("text", WITHIN)
def test_a_site_within_range_passes(text):
    Site.parse(text).check(SPEC, 7)


def test_positions_are_not_checked_without_a_text():
    Site.parse("L0.z@99").check(SPEC)


SHAPES = {
    "L0.z": (7, 4, 12),
    "L0H1.z": (7, 12),
    "L0H1.z@-1": (12,),
    "L0.k": (7, 2, 12),
    "L0H1.pattern": (7, 7),
    "L0H1.pattern@2": (7,),
    "L0.scores@2:5": (4, 3, 7),
    "L0N3.mlp_post": (7,),
    "L0N3.mlp_post@1": (),
    "L0D3.resid_pre": (7,),
    "L0D47.mlp_out@1": (),
    "D3.embed@-3:": (3,),
    "L0.resid_pre@-3:": (3, 48),
    "embed": (7, 48),
}


@pytest.mark.parametrize(("text", "shape"), SHAPES.items())
def test_the_shape_is_that_of_what_the_index_gives(text, shape):
    import numpy as np

    site = Site.parse(text)
    sizes = {
        "pos": 7,
        "query": 7,
        "key": 7,
        "head": 4,
        "kv_head": 2,
        "d_head": 12,
        "d_model": 48,
        "d_mlp": 80,
    }
    whole = np.zeros([sizes[axis] for axis in AXES[site.kind]])
    assert whole[site.index].shape == shape == site.shape(SPEC, 7)


def test_every_head_is_listed_and_key_value_heads_are_fewer():
    assert [str(site) for site in sites(SPEC, "v")] == [
        f"L{layer}H{head}.v" for layer in range(3) for head in range(2)
    ]
    assert len(list(sites(SPEC, "pattern"))) == 12
    assert [str(site) for site in sites(SPEC, "mlp_out")] == ["L0.mlp_out", "L1.mlp_out", "L2.mlp_out"]
    assert list(sites(SPEC, "embed")) == [Site("embed")]


def test_what_a_pass_comes_by_first_is_upstream():
    order = [
        "embed",
        "L0.resid_pre",
        "L0.q",
        "L0.scores",
        "L0.pattern",
        "L0.z",
        "L0.attn_out",
        "L0.resid_mid",
        "L0.mlp_pre",
    ]
    order += ["L0.mlp_post", "L0.mlp_out", "L1.resid_pre"]
    ranks = [Site.parse(text).rank for text in order]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)
    assert Site.parse("L0.q").rank == Site.parse("L0.k").rank == Site.parse("L0.v").rank


def test_a_neuron_and_a_dimension_are_one_number_at_a_position_and_nothing_else_is():
    scalars = [text for text in PRINTED if Site.parse(text).is_scalar]
    assert scalars == [text for text in PRINTED if re.search(r"[ND]\d", text)]
