"""Style: how the diagram looks, in light and in dark."""

from transpector.components import theme


def stylesheet(dark: bool) -> str:
    """The rules for every node, wire and line; what a run changes is added to them."""
    c = theme.ground(dark)
    faint = f"color-mix(in srgb, {c.accent} 22%, {c.paper})"
    return f"""
:host {{ --panel-primary-color: {c.accent}; }}
.react-flow {{ background: {c.paper}; font: 12px/16px {theme.SANS}; border: 1px solid {c.line}; border-radius: 6px; }}
.react-flow__background {{ opacity: .5; }}
.react-flow__attribution {{ background: none; opacity: .5; }}
.react-flow__node {{ box-sizing: border-box; padding: 0; min-width: 0; border: 1px solid {c.line}; border-radius: 6px;
  background: {c.paper}; color: {c.ink}; box-shadow: none; font-size: 13px; text-align: left; cursor: pointer; }}
.react-flow__node.selectable:hover {{ border-color: {c.accent}; box-shadow: none; }}
.react-flow__node.selected {{ border-color: {c.line}; box-shadow: none; }}
.react-flow__node:focus-visible {{ outline: 2px solid {c.accent}; outline-offset: 2px; }}
.rf-node-content {{ position: relative; box-sizing: border-box; width: 100%; height: 100%; min-width: 0; padding: 0;
  border-radius: 5px; background-repeat: no-repeat; image-rendering: pixelated; }}
.rf-node-label {{ margin: 0 !important; padding: 1px 6px; font-weight: 500 !important; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }}
.react-flow__node-q .rf-node-label, .react-flow__node-k .rf-node-label, .react-flow__node-v .rf-node-label
  {{ font: 600 11px/14px {theme.SANS} !important; padding: 0 4px; }}
.react-flow__node-z .rf-node-label {{ line-height: 34px; padding-left: 42px; }}
.react-flow__node-position .rf-node-label {{ font: 13px/24px {theme.MONO} !important; white-space: pre; }}
.react-flow__node-ln1, .react-flow__node-ln2, .react-flow__node-ln1_post, .react-flow__node-ln2_post,
.react-flow__node-ln_final, .react-flow__node-embed_ln {{ border-radius: 16px; border-style: dashed; }}
.react-flow__node-resid_pre, .react-flow__node-resid_mid, .react-flow__node-resid_post {{ border-color: {faint}; border-width: 2px; }}
.react-flow__node-card .rf-node-label {{ font: 600 20px/28px {theme.SANS} !important; padding: 4px 10px 0; cursor: zoom-in; }}
.react-flow__node-card .rf-node-label::after {{ content: "⤢"; float: right; font: 18px/28px {theme.SANS}; color: {c.muted}; }}
.react-flow__node-card .rf-node-label:hover, .react-flow__node-card .rf-node-label:hover::after {{ color: {c.accent}; }}
.react-flow__node-layer {{ background: color-mix(in srgb, {c.accent} 4%, {c.paper}); border-radius: 10px; z-index: -1 !important; }}
.react-flow__node-layer .rf-node-label {{ font: 600 20px/28px {theme.SANS} !important; padding: 6px 14px; cursor: zoom-out; }}
.react-flow__node-layer .rf-node-label::after {{ content: "⤡"; padding-left: 10px; font: 18px/28px {theme.SANS}; color: {c.muted}; }}
.react-flow__node-layer .rf-node-label:hover, .react-flow__node-layer .rf-node-label:hover::after {{ color: {c.accent}; }}
.react-flow__node-turn {{ background: none; border: 0; z-index: -1 !important; }}
.react-flow__node-turn .react-flow__handle-left {{ left: 100%; top: 0 !important; }}
.react-flow__node-turn .react-flow__handle-right {{ right: 100%; top: 100% !important; }}
.react-flow__node-turn .rf-node-content::before {{ content: ""; position: absolute; box-sizing: border-box; right: -4px; top: -4px; width: 55%;
  height: calc(var(--turn) + 8px); border: solid {faint}; border-width: 0 8px 8px 0; border-bottom-right-radius: 20px; }}
.react-flow__node-turn .rf-node-content::after {{ content: ""; position: absolute; box-sizing: border-box; left: -4px; bottom: -4px; width: 55%;
  top: calc(var(--turn) - 4px); border: solid {faint}; border-width: 8px 0 0 8px; border-top-left-radius: 20px; }}
.react-flow__node-strip {{ background: none; border-style: dashed; cursor: default; }}
.react-flow__node-strip .rf-node-label {{ color: {c.muted}; padding: 4px 10px; }}
.react-flow__node-unembed .rf-node-label {{ white-space: pre; font-variant-numeric: tabular-nums; line-height: 18px; padding: 6px 10px; }}
.react-flow__edge-path {{ stroke: color-mix(in srgb, {c.muted} 45%, {c.paper}); stroke-width: 1; }}
.react-flow__edge.stream .react-flow__edge-path {{ stroke: {faint}; stroke-width: 8; stroke-linecap: round; }}
.react-flow__edge.patch .react-flow__edge-path {{ stroke: {c.patched}; stroke-width: 2.5; }}
.react-flow__edge.patch.off .react-flow__edge-path {{ stroke: {c.muted}; stroke-dasharray: 3 4; }}
.react-flow__edge.patch.selected .react-flow__edge-path {{ stroke-width: 4; }}
.react-flow__edge-textbg {{ fill: {c.paper}; stroke: {c.patched}; }}
.react-flow__edge-text {{ fill: {c.ink}; font: 12px {theme.SANS}; }}
.react-flow__connection-path {{ stroke: {c.patched}; stroke-width: 2.5; }}
.react-flow__handle {{ width: 8px; height: 8px; min-width: 0; min-height: 0; border: 1px solid {c.paper}; background: {c.muted}; opacity: 0;
  transition: opacity .1s; }}
.react-flow__node:hover .react-flow__handle-right {{ opacity: 1; background: {c.patched}; }}
.react-flow__handle-right::before {{ content: ""; position: absolute; inset: -14px -12px -14px -6px; }}
.react-flow__handle-left.rf-handle-valid {{ z-index: 5; opacity: .35; left: 0 !important; top: 0 !important; width: 100%; height: 100%; transform: none;
  border: 0; border-radius: 5px; background: {c.patched}; }}
.react-flow__handle-left.rf-handle-valid:hover {{ opacity: .8; }}
.react-flow__handle-left.rf-handle-invalid {{ z-index: 5; opacity: 0; left: 0 !important; top: 0 !important; width: 100%; height: 100%; transform: none;
  border: 0; border-radius: 5px; background: {c.paper}; }}
.react-flow__handle-left.rf-handle-invalid:hover {{ opacity: .92; background: {c.surface}; outline: 2px solid {c.error}; z-index: 20; }}
.react-flow__handle[data-tooltip]::after {{ font: 12px/16px {theme.SANS}; white-space: normal; width: max-content; max-width: 280px;
  background: {c.surface}; color: {c.error}; border: 1px solid {c.error}; }}
.react-flow__minimap {{ transform: scale(.6); transform-origin: bottom right; background: {c.paper}; border: 1px solid {c.line}; border-radius: 4px; overflow: hidden; }}
.react-flow__minimap-node {{ fill: {c.line}; }}
.react-flow__controls {{ box-shadow: none; border: 1px solid {c.line}; border-radius: 4px; overflow: hidden; }}
.react-flow__controls-button {{ background: {c.paper}; color: {c.ink}; border-color: {c.line}; }}
.react-flow__controls-button:hover {{ background: {faint}; }}
.rf-validation-status {{ display: none; }}
"""
