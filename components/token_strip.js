// The token strip: the text as boxes, coloured by the attention from or to one of them, or by a number of each. Hovering
// sends nothing.

const LINE = 28 // px
const STRONGEST = 5
const PATTERNS = ["head", "layer", "all"]
const MEASURED = ["activation", "saliency"]
const SCOPES = [...PATTERNS, ...MEASURED]
const UNTOLD = {values: null, top: 0, beyond: "", signed: false, unit: "", says: "", name: "", hint: "", unable: ""}
const N_COLOURS = 256, ZERO = 128 // where zero lies on the scale about it

const CSS = `
.root { position: relative; contain: inline-size; font: 12px/16px var(--sans); color: var(--ink); }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 16px; margin-bottom: 8px; color: var(--muted); }
.group { display: inline-flex; border-radius: 6px; box-shadow: inset 0 0 0 1px var(--line); }
.group button { all: unset; cursor: pointer; padding: 4px 10px; border-radius: 6px; color: var(--muted);
  white-space: nowrap; }
.group button:hover { color: var(--ink); }
.group button:disabled { cursor: default; color: var(--muted); opacity: .5; }
.group[hidden], .key[hidden] { display: none; }
.group button:focus-visible, .strip:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.group button[aria-checked=true] { color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); font-weight: 600; }
.key { display: inline-flex; align-items: center; gap: 8px; margin-left: auto; font-variant-numeric: tabular-nums; }
.wait { animation: appear 0s .6s both; }
@keyframes appear { from { visibility: hidden; } }
.bar { flex: none; width: 96px; height: 8px; border-radius: 2px; box-shadow: 0 0 0 1px var(--line); }
.strip { overflow-x: hidden; overflow-y: auto; overscroll-behavior: contain; border-radius: 4px;
  font: 14px/24px var(--mono); direction: ltr; text-align: left; outline: none; }
.token { display: inline-block; box-sizing: border-box; height: 24px; max-width: 100%; margin: 2px 2px 2px 0; padding: 0 4px;
  vertical-align: top; overflow: clip; text-overflow: ellipsis; white-space: pre; unicode-bidi: isolate; border-radius: 4px;
  cursor: pointer; color: var(--ink); box-shadow: inset 0 0 0 1px var(--line); }
.token.deep { color: var(--deep); }
.token.blind { color: var(--faint); }
.token:hover { box-shadow: inset 0 0 0 1.5px var(--muted); }
.token.now { box-shadow: inset 0 0 0 2px var(--accent); }
.token.held { box-shadow: inset 0 0 0 3px var(--accent); }
.mark { opacity: .45; }
.break { display: block; height: 0; }
.label { position: fixed; inset: auto; margin: 0; border: 0; padding: 8px 12px; border-radius: 6px; z-index: 2000;
  pointer-events: none; background: var(--surface); color: var(--ink);
  box-shadow: 0 0 0 1px var(--line), 0 6px 20px rgba(10, 8, 40, .18);
  font: 12px/16px var(--sans); font-variant-numeric: tabular-nums; white-space: pre; }
.label b { font-weight: 600; }
.label .quiet { color: var(--muted); }
.label .piece { font-family: var(--mono); unicode-bidi: isolate; }
.label .row { display: grid; grid-template-columns: 28px 64px 1fr auto; align-items: center; gap: 8px; margin-top: 4px; }
.label .meter { height: 6px; border-radius: 2px; background: var(--accent); min-width: 1px; }
`

export function render({model}) {
  const look = model.esm_constants
  const root = element("div", "root")
  const style = element("style")
  style.textContent = CSS
  const controls = element("div", "controls")
  const strip = element("div", "strip")
  strip.dir = "ltr"
  strip.tabIndex = 0
  strip.setAttribute("role", "listbox")
  strip.setAttribute("aria-label", "Tokens of the text. Left and right arrow select a token.")
  strip.dataset.drawn = "0"
  const label = element("div", "label")
  label.setAttribute("role", "tooltip")
  label.popover = "manual"
  root.append(style, controls, strip, label)

  let tokens = []
  let painted = [] // the class and colour each token has now: only what changes is written
  let hovered = null
  let pending = null
  let stale = true
  let causal = null
  let scale = null

  const colours = () => look[model.dark ? "dark" : "light"]
  const count = () => tokens.length

  // -- the controls -------------------------------------------------------------------------------------------------

  const [scopes] = choice("Colour", SCOPES, (value) => { model.scope = value })
  const [directions, direction] = choice("Direction", ["from", "to"], (value) => { model.direction = value })
  directions.from.textContent = "attends to"
  directions.to.textContent = "attended by"
  directions.from.title = "Colour what the token under the pointer attends to"
  directions.to.title = "Colour the tokens that attend to the one under the pointer"
  scopes.layer.textContent = "mean of layer"
  scopes.all.textContent = "mean of all"
  const key = element("span", "key")
  const bar = element("canvas", "bar")
  bar.width = N_COLOURS
  bar.height = 1
  const [start, end] = [element("span"), element("span")]
  key.append(start, bar, end)
  const wait = text("span", "measuring…", "key wait")
  const refusal = element("span", "key")
  controls.append(key, wait, refusal)

  function choice(name, values, set) {
    const group = element("div", "group")
    group.setAttribute("role", "radiogroup")
    group.setAttribute("aria-label", name)
    const buttons = {}
    for (const value of values) {
      const button = element("button")
      button.type = "button"
      button.setAttribute("role", "radio")
      button.dataset.value = value
      button.addEventListener("click", () => set(value))
      buttons[value] = button
      group.append(button)
    }
    group.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key]
      const at = values.indexOf(event.target.dataset.value)
      if (!step || at < 0) return
      event.preventDefault()
      const able = values.filter((value) => !buttons[value].disabled)
      const next = able[(able.indexOf(values[at]) + step + able.length) % able.length]
      set(next)
      buttons[next].focus()
    })
    controls.append(group)
    return [buttons, group]
  }

  // -- the tokens ---------------------------------------------------------------------------------------------------

  function build() {
    const pieces = model.pieces || []
    const made = document.createDocumentFragment()
    tokens = pieces.map((piece, i) => {
      const token = element("span", "token")
      token.dataset.i = String(i)
      token.id = `token-${i}`
      token.dir = "auto"
      token.setAttribute("role", "option")
      write(token, piece)
      made.append(token)
      if (piece.includes("⏎")) made.append(element("span", "break"))
      return token
    })
    painted = tokens.map(() => "")
    strip.replaceChildren(made)
  }

  // The array of the scope at hand, or null while pieces and patterns do not belong together.
  function pattern() {
    const size = count() ** 2
    const bytes = model.patterns
    if (!size || !bytes || bytes.byteLength !== 3 * size || isMeasured()) return null
    return new Uint8Array(bytes, PATTERNS.indexOf(model.scope) * size, size)
  }

  const isMeasured = () => MEASURED.includes(model.scope)

  const told = (scope) => model.numbers?.[scope] ?? UNTOLD

  // The numbers of the tokens and what is told of them, or null where they are not known, or not wanted.
  function measured() {
    const {values, ...about} = told(model.scope)
    const known = isMeasured() && count() && values?.byteLength === 4 * count()
    return known ? {...about, values: new Float32Array(values)} : null
  }

  // The place of a number on the scale.
  function shade(number, {top, signed}) {
    const share = top ? Math.max(-1, Math.min(1, number / top)) : 0
    return signed ? ZERO + Math.round((N_COLOURS - 1 - ZERO) * share) : Math.round((N_COLOURS - 1) * share)
  }

  function isCausal() {
    if (causal !== null) return causal
    const n = count()
    const all = new Uint8Array(model.patterns)
    causal = true
    for (let query = 0; query < 3 * n && causal; query++) {
      for (let key = query % n + 1; key < n; key++) {
        if (all[query * n + key]) {
          causal = false
          break
        }
      }
    }
    return causal
  }

  const focus = () => hovered ?? (model.position !== null && model.position < count() ? model.position : null)

  function paint() {
    pending = null
    if (stale) {
      stale = false
      build()
    }
    const numbers = measured()
    dress(numbers)
    const n = count()
    const at = focus()
    const values = at === null ? null : pattern()
    const from = model.direction === "from"
    const blinding = values !== null && isCausal()
    for (let i = 0; i < n; i++) {
      const value = numbers ? shade(numbers.values[i], numbers) : !values ? 0 : from ? values[at * n + i] : values[i * n + at]
      const blind = blinding && (from ? i > at : i < at)
      const held = i === model.position
      const state = `${value}|${blind}|${i === at}|${held}`
      if (state === painted[i]) continue
      painted[i] = state
      const token = tokens[i]
      token.className = "token"
      token.classList.toggle("deep", scale.deep[value])
      token.classList.toggle("blind", blind)
      token.classList.toggle("now", i === at)
      token.classList.toggle("held", held)
      token.style.backgroundColor = value === scale.zero ? "" : scale.css[value]
      token.setAttribute("aria-selected", String(held))
    }
    if (model.position !== null && model.position < n) strip.setAttribute("aria-activedescendant", `token-${model.position}`)
    else strip.removeAttribute("aria-activedescendant")
    if (hovered === null) hide()
    else explain(hovered, values, numbers)
    strip.dataset.drawn = String(Number(strip.dataset.drawn) + 1)
  }

  function dress(numbers) {
    const colour = colours()
    for (const name of ["surface", "ink", "muted", "line", "accent"]) root.style.setProperty(`--${name}`, colour[name])
    root.style.setProperty("--deep", colour.paper)
    root.style.setProperty("--faint", `color-mix(in oklab, ${colour.muted} 80%, ${colour.paper})`)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    strip.style.maxHeight = `${model.lines * LINE}px`
    scopes.head.textContent = model.head || "this head"
    for (const value of SCOPES) check(scopes[value], model.scope === value)
    for (const value of MEASURED) {
      const {name, hint, unable} = told(value)
      scopes[value].textContent = name || value
      scopes[value].disabled = Boolean(unable)
      scopes[value].title = unable || hint
    }
    direction.hidden = isMeasured()
    const {unable} = told(model.scope)
    const nothing = numbers?.top === 0
    start.textContent = numbers?.signed ? figures(-numbers.top) : "0"
    end.textContent = nothing ? "0 at every token" : numbers ? amount(numbers.top, numbers) : "1"
    if (numbers?.beyond) end.textContent += ` · ${numbers.beyond}`
    start.hidden = bar.hidden = nothing
    key.hidden = isMeasured() && !numbers
    wait.hidden = !key.hidden || Boolean(unable)
    refusal.hidden = !key.hidden || !unable
    refusal.textContent = unable
    for (const value of ["from", "to"]) check(directions[value], model.direction === value)
    take(Boolean(numbers?.signed))
  }

  // Takes the scale from zero, or that about it.
  function take(signed) {
    if (scale?.dark === model.dark && scale.signed === signed) return
    const rgb = new Uint8Array(model.palette, 3 * N_COLOURS * (2 * Number(signed) + Number(model.dark)), 3 * N_COLOURS)
    const css = Array.from({length: N_COLOURS}, (_, i) => `rgb(${rgb[3 * i]}, ${rgb[3 * i + 1]}, ${rgb[3 * i + 2]})`)
    // Where the box is nearer to the ink than to the paper, the text takes the paper's colour.
    const deep = css.map((_, i) => {
      const luminance = (0.2126 * rgb[3 * i] + 0.7152 * rgb[3 * i + 1] + 0.0722 * rgb[3 * i + 2]) / 255
      return model.dark ? luminance > 0.45 : luminance < 0.5
    })
    scale = {dark: model.dark, signed, css, deep, zero: signed ? ZERO : 0}
    painted.fill("")
    const image = new ImageData(N_COLOURS, 1)
    for (let i = 0; i < N_COLOURS; i++) image.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i)
    bar.getContext("2d").putImageData(image, 0, 0)
  }

  function check(button, on) {
    button.setAttribute("aria-checked", String(on))
    button.tabIndex = on ? 0 : -1
  }

  // -- the label ----------------------------------------------------------------------------------------------------

  function explain(at, values, numbers) {
    const n = count()
    const heading = element("div")
    const id = model.ids && model.ids.length === n ? ` · id ${model.ids[at]}` : ""
    const name = text("span", clip(model.pieces[at]))
    name.className = "piece"
    heading.append(text("b", `position ${at}`), text("span", `${id} · `, "quiet"), name)
    label.replaceChildren(heading)
    if (numbers) {
      const {values, top, signed, says} = numbers
      const line = element("div")
      line.style.marginTop = "4px"
      const share = top && !signed ? ` · ${Math.round(100 * values[at] / top)} % of the largest` : ""
      line.append(text("span", amount(values[at], numbers)), text("span", share, "quiet"))
      label.append(line, text("div", says, "quiet"))
    }
    if (values) {
      const from = model.direction === "from"
      const others = Array.from({length: n}, (_, i) => [from ? values[at * n + i] : values[i * n + at], i])
      const visible = others.filter(([value]) => value > 1) // 2 / 255 is the least that is not 0.00
      const strongest = visible.sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, STRONGEST)
      const verb = from ? "attends to" : "attended by"
      const line = text("div", strongest.length ? verb : `${verb}: nothing above 0.00`, "quiet")
      line.style.marginTop = "4px"
      label.append(line)
      for (const [value, i] of strongest) {
        const row = element("div", "row")
        const meter = element("span", "meter")
        meter.style.width = `${64 * value / 255}px`
        const piece = text("span", clip(model.pieces[i]), "piece")
        piece.dir = "auto"
        row.append(text("span", (value / 255).toFixed(2), "value"), meter, piece, text("span", `@${i}`, "quiet"))
        label.append(row)
      }
    }
    if (!label.matches(":popover-open")) label.showPopover()
    const box = tokens[at].getBoundingClientRect()
    const {width, height} = label.getBoundingClientRect()
    const below = box.bottom + 8 + height < window.innerHeight
    label.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - width - 8))}px`
    label.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`
  }

  function hide() {
    if (label.matches(":popover-open")) label.hidePopover()
  }

  // -- the pointer and the keys -------------------------------------------------------------------------------------

  function under(event) {
    const token = event.target.closest?.(".token")
    return token ? Number(token.dataset.i) : null
  }

  function hover(at) {
    if (at === hovered) return
    hovered = at
    ask()
  }

  function select(position) {
    if (position !== model.position) model.position = position
  }

  strip.addEventListener("pointerover", (event) => { if (under(event) !== null) hover(under(event)) })
  strip.addEventListener("pointerleave", () => hover(null))
  strip.addEventListener("scroll", () => hover(null))
  strip.addEventListener("click", (event) => {
    const at = under(event)
    if (at !== null) select(at === model.position ? null : at)
  })
  strip.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !count()) return
    const at = model.position
    const last = count() - 1
    const before = Math.max(0, (at ?? last + 1) - 1)
    const after = Math.min(last, (at ?? -1) + 1)
    const to = {ArrowLeft: before, ArrowRight: after, Home: 0, End: last, Escape: null}[event.key]
    if (to === undefined) return
    event.preventDefault()
    hovered = null
    select(to)
    if (to !== null) tokens[to].scrollIntoView({block: "nearest"})
  })

  function ask() {
    pending ??= requestAnimationFrame(paint)
  }

  model.on("pieces", () => { stale = true; hovered = null; causal = null; ask() })
  model.on("patterns", () => { causal = null; ask() })
  model.on(["ids", "head", "scope", "numbers", "direction", "position", "lines", "dark"], ask)
  model.on("remove", () => cancelAnimationFrame(pending))
  dress(null)
  ask()
  return root
}

function element(tag, name) {
  const made = document.createElement(tag)
  if (name) made.className = name
  return made
}

function text(tag, words, name) {
  const made = element(tag, name)
  made.textContent = words
  return made
}

// Writes a piece with its marks drawn quietly; only ever as text.
function write(token, piece) {
  const leading = piece.length > 1 && piece.startsWith("·") ? 1 : 0
  if (leading) token.append(text("span", piece.slice(0, leading), "mark"))
  for (const part of piece.slice(leading).split(/([⏎⇥]+)/u)) {
    if (part) token.append(/^[⏎⇥]/u.test(part) ? text("span", part, "mark") : document.createTextNode(part))
  }
}

// A number with its sign, where it may have either, and its unit.
function amount(number, {signed, unit}) {
  return `${signed && number > 0 ? "+" : ""}${figures(number)}${unit && ` ${unit}`}`
}

// A number as `base.figures` writes it.
function figures(number) {
  const rounded = Number(number.toPrecision(3)), size = Math.abs(rounded)
  const isLong = size && (size < 1e-3 || size >= 1e6)
  return (isLong ? number.toExponential(1).replace(".0e", "e").replace("e+", "e")
    : size && size < 1e3 ? rounded.toPrecision(3) : rounded.toLocaleString("en-US")).replaceAll("-", "−")
}

function clip(words) {
  const characters = Array.from(words)
  return characters.length > 24 ? `${characters.slice(0, 23).join("")}…` : words
}
