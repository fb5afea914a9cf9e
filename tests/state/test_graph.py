"""The graph of a model against the model itself: its hooks fire, its shapes agree, its sums add up."""

import numpy as np
import pytest
import torch

import random_models
import transpector as tp
from transpector.state import measure
from transpector.state.graph import NORMS, Edge, drawn

TEXT = "the cat sat on the mat"
N_POS = 10
ARCHITECTURES = (*random_models.KINDS, "attention_only")


@pytest.fixture(params=ARCHITECTURES)
def lm(request, random_lm):
    named = request.param == "attention_only"
    return request.getfixturevalue("attention_only") if named else random_lm(request.param)


def values(lm, graph):
    """What each node writes on a text: [pos, …] by id, read at the hook points that the nodes name."""
    ids = torch.tensor([lm.tokenize(TEXT)])
    seen = {}
    note = lambda value, hook: seen.__setitem__(hook.name, value.detach().clone())  # noqa: E731
    hooks = [(name, note) for name in {node.hook for node in graph.nodes}]
    with torch.no_grad():
        lm.worker.call(lambda: lm.bridge.run_with_hooks(ids, fwd_hooks=hooks))
    # A point may go by several names, and tells one of them.
    points = {name: point.name for name, point in lm.bridge.hook_dict.items()}
    found = {}
    for node in graph.nodes:
        value = seen[points[node.hook]][0]
        found[node.id] = value if node.head is None else value[:, node.head]
    return found, ids.shape[1]


def test_every_node_names_a_hook_that_fires_with_its_shape(lm):
    graph = tp.graph(lm)
    found, n_pos = values(lm, graph)
    assert len({node.id for node in graph.nodes}) == len(graph.nodes)
    for node in graph.nodes:
        shape = tuple(n_pos if size == "pos" else size for size in node.shape)
        assert tuple(found[node.id].shape) == shape, node


def test_every_site_of_a_node_resolves_to_what_its_hook_sees(lm):
    graph = tp.graph(lm)
    found, n_pos = values(lm, graph)
    run = tp.Session(model=lm, text=TEXT).wait().run
    for node in graph.nodes:
        if node.site is not None:
            assert node.site.shape(lm.spec, n_pos) == tuple(found[node.id].shape)
            assert np.allclose(run.activation(node.site), found[node.id].numpy(), atol=1e-4), node
            assert node.at(2).site.shape(lm.spec, n_pos) == node.at(2).shape


def test_every_edge_joins_what_is_written_to_what_is_read(lm):
    graph = tp.graph(lm)
    order = {node.id: at for at, node in enumerate(graph.nodes)}
    assert len(set(graph.edges)) == len(graph.edges)
    for edge in graph.edges:
        assert graph[edge.source].shape == graph[edge.target].takes, edge
        assert order[edge.source] < order[edge.target], edge
    read = {edge.source for edge in graph.edges}
    written = {edge.target for edge in graph.edges}
    ends = {node.id for node in graph.nodes if node.id not in read}
    starts = {node.id for node in graph.nodes if node.id not in written}
    assert ends == {"unembed"} and starts <= {"embed", "pos_embed"}


def test_the_residual_stream_is_the_sum_of_what_is_drawn_into_it(lm):
    graph = tp.graph(lm)
    found, _ = values(lm, graph)
    for node in graph.nodes:
        if node.kind in ("resid_pre", "resid_mid", "resid_post"):
            total = sum(found[edge.source] for edge in graph.edges if edge.target == node.id)
            assert torch.allclose(total, found[node.id], atol=1e-3), node


def test_a_head_reads_the_keys_and_values_that_move_it(random_lm):
    lm = random_lm("llama")
    graph = tp.graph(lm)
    s = tp.Session(model=lm, text=TEXT).wait()
    for kind in "kv":
        for kv_head in range(lm.spec.n_kv_heads):
            s.interventions = [tp.Ablate(f"L1H{kv_head}.{kind}")]
            s.wait()
            moved = {
                f"L1H{head}.z"
                for head in range(lm.spec.n_heads)
                if not np.array_equal(s.run.activation(f"L1H{head}.z"), s.baseline.activation(f"L1H{head}.z"))
            }
            assert moved == {edge.target for edge in graph.edges if edge.source == f"L1H{kv_head}.{kind}"}


def reads(graph, target):
    return {edge.source for edge in graph.edges if edge.target == target}


def test_blocks_are_drawn_as_what_they_are(random_lm, attention_only):
    gpt2 = tp.graph(random_lm("gpt2"))
    assert reads(gpt2, "L0.resid_pre") == {"embed", "pos_embed"}
    assert reads(gpt2, "L1.resid_mid") == {"L1.resid_pre", "L1.attn_out"}
    assert reads(gpt2, "L2.resid_pre") == {"L1.resid_mid", "L1.mlp_out"}
    assert reads(gpt2, "L1.ln2") == {"L1.resid_mid"}

    llama = tp.graph(random_lm("llama"))
    assert reads(llama, "L0.resid_pre") == {"embed"}
    assert reads(llama, "L0H3.z") == {"L0H3.q", "L0H1.k", "L0H1.v"}
    assert reads(llama, "L0.mlp_post") == {"L0.mlp_pre", "L0.mlp_pre_linear"}

    neox = tp.graph(random_lm("gpt_neox"))
    assert "L1.resid_mid" not in neox
    assert reads(neox, "L1.ln2") == {"L1.resid_pre"}
    assert reads(neox, "L2.resid_pre") == {"L1.resid_pre", "L1.attn_out", "L1.mlp_out"}

    shared_norm = tp.graph(random_lm("gptj"))
    assert reads(shared_norm, "L1.mlp_pre") == {"L1.ln1"}

    gemma2 = tp.graph(random_lm("gemma2"))
    assert reads(gemma2, "L1.attn_out") == {"L1.ln1_post"}
    assert reads(gemma2, "L1.mlp_out") == {"L1.ln2_post"}

    bare = tp.graph(attention_only)
    assert not {node.kind for node in bare.nodes} & {"mlp_pre", "mlp_post", "mlp_out", "ln2", "resid_mid"}
    assert reads(bare, "L1.resid_pre") == {"L0.resid_pre", "L0.attn_out"}
    assert reads(tp.graph(random_lm("bloom")), "L0.resid_pre") == {"embed_ln"}


def test_a_residual_stream_has_a_node_at_each_position_once_it_is_asked_for(random_lm):
    graph = tp.graph(random_lm("gpt2"))
    node = graph["L1.resid_pre@3"]
    assert (node.site, node.shape, node.position) == (tp.Site.parse("L1.resid_pre@3"), (48,), 3)
    assert "L1.resid_pre@3" not in {n.id for n in graph.nodes}
    for nothing in ("L9.resid_pre", "L1.ln1@3", "L1.resid_pre@x", "", "@3"):
        assert nothing not in graph
        with pytest.raises(tp.SiteError, match="is no part of this model"):
            graph[nothing]
    assert Edge("embed", "L0.resid_pre") in graph.edges


def test_a_line_is_the_patch_that_it_looks_like(random_lm):
    lm = random_lm("llama")
    graph = tp.graph(lm)
    line = lambda source, target, **rest: drawn(lm, graph[source], graph[target], N_POS, **rest)  # noqa: E731
    assert line("L0H1.z", "L2H0.z") == tp.Patch("L2H0.z", source="L0H1.z")
    assert line("L0H1.z", "L1H0.q") == tp.Patch("L1H0.q", source="L0H1.z")
    assert line("L0.attn_out", "L2.resid_pre") == tp.Patch("L2.resid_pre", source="L0.attn_out")
    assert line("L1.resid_pre@1", "L1.resid_pre@4") == tp.Patch("L1.resid_pre@4", source="L1.resid_pre@1")
    same = line("L1H0.z", "L1H0.z", text=TEXT)
    assert same == tp.Patch("L1H0.z", source="L1H0.z", text=TEXT)
    # From another text, what is downstream can be had as well.
    assert line("L2H0.z", "L0H1.z", text=TEXT).text == TEXT


@pytest.mark.parametrize(
    ("source", "target", "text", "reason"),
    [
        ("L2H0.z", "L0H1.z", None, "not upstream"),
        ("L1H0.z", "L1H0.z", None, "changes nothing"),
        ("L0H0.z", "L1.resid_pre", None, "the target has shape"),
        ("L0.resid_pre@2", "L1.resid_pre", None, "the target has shape"),
        ("L0H0.z", "L1H0.z", "the cat", "same number of tokens"),
        ("L0.ln1", "L1.resid_pre", None, "is no activation that can be patched"),
        ("L0.mlp_out", "unembed", None, "is no activation that can be patched"),
        ("L0.resid_pre@2", "L1.resid_pre@9", None, "positions 0 to 5"),
    ],
)
def test_a_line_that_is_no_patch_says_why(random_lm, source, target, text, reason):
    lm = random_lm("llama")
    graph = tp.graph(lm)
    with pytest.raises(tp.TranspectorError, match=reason):
        drawn(lm, graph[source], graph[target], 6, text)


def test_the_norms_of_parts_are_those_of_what_their_hooks_see(lm):
    graph = tp.graph(lm)
    found, _ = values(lm, graph)
    run = tp.Session(model=lm, text=TEXT).wait().run
    norms = measure.part_norms(run, graph.layer(1))
    for node in graph.layer(1):
        if node.kind in NORMS:
            continue
        if node.site is None or lm.health.can_read(node.kind):
            wanted = found[node.id].norm(dim=-1).numpy()
            assert np.allclose(norms[node.id], wanted, rtol=1e-4, atol=1e-4), node
        assert np.allclose(measure.part_values(run, node), found[node.id].numpy(), atol=1e-4), node


def test_what_is_outside_the_layers_is_what_its_hook_sees_or_is_said_not_to_be_kept(lm):
    graph = tp.graph(lm)
    found, _ = values(lm, graph)
    run = tp.Session(model=lm, text=TEXT).wait().run
    for node in (*graph.layer(None), graph[f"L{lm.spec.n_layers - 1}.resid_post"]):
        if node.kind in ("pos_embed", "embed_ln"):
            with pytest.raises(tp.SiteError, match=f"{node.id} is not kept"):
                measure.part_values(run, node)
        elif node.kind == "unembed":  # before the soft cap that some models put on their logits
            assert measure.part_values(run, node).shape == found[node.id].shape
        else:
            assert np.allclose(measure.part_values(run, node), found[node.id].numpy(), atol=1e-4), node


@pytest.mark.parametrize("odd", [False, True])
def test_a_norm_scales_by_the_spread_of_what_it_reads_under_interventions(random_lm, odd_lm, odd):
    lm = odd_lm if odd else random_lm("llama")
    s = tp.Session(model=lm, text=TEXT, interventions=[tp.Ablate("L1H1.z"), tp.Ablate("L0.mlp_out", "mean")])
    run = s.wait().run
    norms = measure.part_norms(run, tp.graph(lm).layer(1))
    for norm, stream in (("ln1", "resid_pre"), ("ln2", "resid_mid")):
        read = run.activation(f"L1.{stream}")
        assert np.allclose(norms[f"L1.{norm}"], np.sqrt((read**2).mean(-1) + 1e-5), rtol=1e-4), norm


def test_a_hook_point_that_is_not_there_has_no_value(random_lm):
    run = tp.Session(model=random_lm("gpt2"), text=TEXT).wait().run
    node = tp.graph(random_lm("gpt2"))["L1.ln1"]
    with pytest.raises(KeyError):
        run.tensor(("blocks.1.ln9.hook_scale", 1))
    assert "L1.ln1" in measure.part_norms(run, [node])
