// A continuation as running text: each token on its probability's colour. Text is only ever set as text.

const CSS = `
.root { font: 13px/24px var(--mono); color: var(--ink); white-space: pre-wrap; overflow-wrap: anywhere; max-height: 360px; overflow-y: auto; }
.context { color: var(--muted); }
.token { display: inline-block; white-space: pre; line-height: 20px; border-radius: 2px; box-shadow: inset 0 0 0 .5px color-mix(in srgb, var(--line) 70%, transparent); }
.token.light { color: var(--paper); }
.token.parted { outline: 2px solid var(--patched); outline-offset: -1px; }
.token:hover { outline: 1.5px solid var(--accent); }
.token i { font-style: normal; opacity: .35; }
.end { color: var(--muted); font: 12px/16px var(--sans); }
.caret { display: inline-block; width: 7px; height: 14px; vertical-align: -2px; background: var(--accent); animation: blink 1s steps(2) infinite; }
@keyframes blink { 50% { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .caret { animation: none; } }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const flow = document.createElement("div")
  style.textContent = CSS
  flow.className = "root"
  flow.tabIndex = 0
  flow.setAttribute("role", "log")
  root.append(style, flow)
  let painted = [] // the pieces that are on the page, so that a new token adds one

  function colour(probability) {
    const rgb = new Uint8Array(model.palette, model.dark ? 768 : 0, 768)
    // Half the scale, so that the text on it can be read.
    const at = 3 * Math.round(150 * Math.min(1, Math.max(0, probability)))
    return `rgb(${rgb[at]} ${rgb[at + 1]} ${rgb[at + 2]})`
  }

  function token(at) {
    const made = document.createElement("span")
    const [piece, probability] = model.tokens[at]
    made.className = "token" + (at === model.parted ? " parted" : "")
      + (!model.dark && probability > .72 ? " light" : "")
    if (piece.startsWith("·")) made.append(Object.assign(document.createElement("i"), {textContent: "·"}))
    made.append((piece.startsWith("·") ? piece.slice(1) : piece))
    made.style.background = colour(probability)
    const parted = at === model.parted ? "\nHere the two part." : ""
    made.title = `${piece}  position ${model.first + at}\nprobability ${probability.toFixed(3)}${parted}`
    return piece.endsWith("⏎") ? [made, document.createElement("br")] : [made]
  }

  function dress() {
    const look = model.esm_constants
    for (const [name, value] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, value)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    flow.setAttribute("aria-label", model.label)
  }

  function paint(fresh) {
    const pieces = model.tokens.map(([piece]) => piece)
    const goesOn = !fresh && painted.every((piece, at) => piece === pieces[at])
    flow.querySelectorAll(".end, .caret").forEach((each) => each.remove())
    const low = flow.scrollTop + flow.clientHeight >= flow.scrollHeight - 30
    if (!goesOn) {
      const context = document.createElement("span")
      context.className = "context"
      context.textContent = model.context
      flow.replaceChildren(...(model.context ? [context] : []))
      painted = []
    }
    for (let at = painted.length; at < pieces.length; at++) flow.append(...token(at))
    painted = [...pieces]
    const last = document.createElement("span")
    last.className = model.busy ? "caret" : "end"
    if (!model.busy) last.textContent = model.end ? `  ${model.end}` : ""
    flow.append(last)
    if (low) flow.scrollTop = flow.scrollHeight
  }

  dress()
  paint(true)
  model.on("dark", () => { dress(); paint(true) })
  model.on(["tokens", "end", "busy"], () => paint(false))
  model.on(["context", "parted"], () => paint(true))
  return root
}
