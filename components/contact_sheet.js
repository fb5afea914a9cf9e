// The contact sheet: every head's thumbnail in one canvas. Colour and layout happen here; hovering sends nothing.

const MAX_CELL = 120 // px
const MIN_CELL = 6
const BLOCK_GAP = 20 // between blocks of layers
const LABEL_LEFT = 30
const LABEL_TOP = 18
const LEGEND = 32
const LEGEND_GAP = 8
const SIDEWAYS_GAIN = 1.06 // another block of layers must make cells this much larger
const STRIP = 0.14 // of a cell: the height of the strip below it that has the colour of its score
const MIN_STRIP = 4 // px

const CSS = `
.sheet { position: relative; contain: inline-size; font-family: var(--sans); font-size: 12px; line-height: 16px; color: var(--ink); }
.frame { position: relative; width: max-content; transition: opacity 120ms; }
.busy .frame { opacity: .7; transition: opacity 240ms 120ms; }
canvas.picture { display: block; outline: none; cursor: default; border-radius: 2px; }
canvas.picture.over { cursor: pointer; }
canvas.picture:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; }
.hover { position: absolute; box-sizing: border-box; pointer-events: none; border: 1.5px solid var(--muted);
  border-radius: 2px; }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 16px; margin-top: 8px; padding-left: 30px;
  min-height: 24px; color: var(--muted); font-variant-numeric: tabular-nums; }
.legend > span { display: inline-flex; align-items: center; gap: 8px; white-space: nowrap; }
.legend > span[hidden], .legend > span:empty { display: none; }
.legend .what { white-space: normal; }
.entry { display: inline-flex; align-items: center; gap: 4px; }
.bar { width: 96px; height: 8px; border-radius: 2px; box-shadow: 0 0 0 1px var(--line); }
.bar.short { width: 64px; }
.swatch { width: 16px; height: 16px; }
button { all: unset; cursor: pointer; padding: 2px 8px; border-radius: 4px; box-shadow: inset 0 0 0 1px var(--line);
  color: var(--muted); }
button:hover { color: var(--ink); box-shadow: inset 0 0 0 1px var(--muted); }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.label { position: fixed; inset: auto; margin: 0; border: 0; padding: 6px 10px; border-radius: 6px; z-index: 2000;
  pointer-events: none; background: var(--surface); color: var(--ink);
  box-shadow: 0 0 0 1px var(--line), 0 6px 20px rgba(10, 8, 40, .18);
  font: 12px/16px var(--sans); font-variant-numeric: tabular-nums; white-space: pre; }
.label b { font-weight: 600; }
.label .quiet { color: var(--muted); }
.label .piece { font-family: var(--mono); }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`

export function render({model, el}) {
  const look = model.esm_constants
  const sheet = element("div", "sheet")
  const style = element("style")
  style.textContent = CSS
  const frame = element("div", "frame")
  const canvas = element("canvas", "picture")
  canvas.tabIndex = 0
  canvas.setAttribute("role", "application")
  canvas.setAttribute("aria-roledescription", "grid of attention patterns")
  canvas.dataset.drawn = "0"
  const context = canvas.getContext("2d", {willReadFrequently: true})
  const hover = element("div", "hover")
  hover.hidden = true
  const label = element("div", "label")
  label.setAttribute("role", "tooltip")
  label.popover = "manual"
  const spoken = element("div", "spoken")
  spoken.setAttribute("aria-live", "polite")
  const legend = element("div", "legend")
  frame.append(canvas, hover)
  sheet.append(style, frame, legend, label, spoken)

  let geometry = null
  let base = null // ImageData of the thumbnails alone: a new selection need not colour them again
  let width = 0 // the sheet's, when it was last laid out
  let pending = null
  let shown = {} // the last consistent picture: its arrays belong together

  const colours = () => look[model.dark ? "dark" : "light"]

  // -- what is shown ------------------------------------------------------------------------------------------------

  function take() {
    const [layers, heads, side] = model.shape
    const pixels = new Uint8Array(model.thumbnails || 0)
    if (layers * heads * side === 0 || pixels.length !== layers * heads * side * side) return
    const bytes = model.maxima
    const maxima = bytes && bytes.byteLength === 4 * layers * heads ? new Float32Array(bytes) : null
    shown = {layers, heads, side, pixels, maxima, pooled: model.pooled, pieces: model.pieces || []}
  }

  // A number for each head, or null; apart from what the thumbnails need, for it may change without them.
  function scores() {
    const bytes = model.scores
    if (!bytes || bytes.byteLength !== 4 * shown.layers * shown.heads) return null
    const values = new Float32Array(bytes)
    const top = model.scores_top || values.reduce((most, value) => Math.max(most, Math.abs(value) || 0), 0) || 1
    return {values, top}
  }

  function scoreColour(value, top) {
    const scale = look.signed[model.dark ? "dark" : "light"]
    const at = Math.floor(scale.length * (1 + value / top) / 2)
    return scale[Math.max(0, Math.min(scale.length - 1, at))]
  }

  const below = () => Math.max(LEGEND, legend.offsetHeight + LEGEND_GAP)

  function lay() {
    const {layers, heads} = shown
    width = sheet.clientWidth
    if (!width || !layers) return null
    const dpr = window.devicePixelRatio || 1
    const height = model.max_height ? model.max_height - below() - LABEL_TOP : Infinity
    const scored = scores() !== null
    let best = null
    for (let blocks = 1; blocks <= layers; blocks++) {
      const rows = Math.ceil(layers / blocks)
      if (Math.ceil(layers / rows) !== blocks) continue
      const across = (width - blocks * LABEL_LEFT - (blocks - 1) * BLOCK_GAP) / (blocks * heads)
      const down = height / rows
      const step = Math.min(across, scored ? Math.min(down / (1 + STRIP), down - MIN_STRIP) : down)
      if (!best || step > best.step * SIDEWAYS_GAIN && best.step < MAX_CELL) best = {blocks, rows, step}
    }
    const gap = Math.round((best.step > 40 ? 4 : best.step > 16 ? 3 : 1) * dpr)
    const room = Math.floor(Math.min(Math.max(best.step, MIN_CELL) * dpr, MAX_CELL * dpr + gap))
    const cell = even(room - gap, room - Math.ceil(gap / 2), shown.side)
    const left = Math.round(LABEL_LEFT * dpr)
    const top = Math.round(LABEL_TOP * dpr)
    const step = Math.min(room, cell + gap)
    const strip = scored ? Math.max(Math.round(MIN_STRIP * dpr), Math.floor(STRIP * step)) : 0
    const tall = step + strip
    const block = left + heads * step + Math.round(BLOCK_GAP * dpr)
    const cells = []
    for (let layer = 0; layer < layers; layer++) {
      const x = Math.floor(layer / best.rows) * block + left
      const y = top + (layer % best.rows) * tall
      cells.push(Array.from({length: heads}, (_, head) => [x + head * step, y]))
    }
    return {dpr, cell, step, strip, tall, left, top, block, rows: best.rows, blocks: best.blocks, cells,
      width: best.blocks * block - Math.round(BLOCK_GAP * dpr), height: top + best.rows * tall}
  }

  // -- the thumbnails -----------------------------------------------------------------------------------------------

  function colourTable() {
    const rgb = new Uint8Array(model.palette, model.dark ? 768 : 0, 768)
    const packed = (i) => (255 << 24 | rgb[3 * i + 2] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i]) >>> 0
    return Uint32Array.from({length: 256}, (_, i) => packed(i))
  }

  function colour() {
    const {layers, heads, side, pixels, maxima} = shown
    const {cell, width, height, cells} = geometry
    base = new ImageData(width, height)
    const out = new Uint32Array(base.data.buffer)
    const table = colourTable()
    const own = new Uint32Array(256)
    const ranges = Array.from({length: cell}, (_, i) => under(i))
    const from = ranges.map((range) => range[0])
    const to = ranges.map((range) => range[1])
    const shrunk = cell < side
    const row = new Uint8Array(side)
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const [x, y] = cells[layer][head]
        const start = (layer * heads + head) * side * side
        let scale = table
        if (model.scale === "head" && maxima) {
          const top = 255 * maxima[layer * heads + head]
          for (let v = 0; v < 256; v++) own[v] = table[top > 0 ? Math.min(255, Math.round(255 * v / top)) : 0]
          scale = own
        }
        for (let i = 0; i < cell; i++) {
          const line = (y + i) * width + x
          if (!shrunk && i > 0 && from[i] === from[i - 1]) {
            out.copyWithin(line, line - width, line - width + cell)
            continue
          }
          if (!shrunk) {
            const source = start + from[i] * side
            for (let j = 0; j < cell; j++) out[line + j] = scale[pixels[source + from[j]]]
            continue
          }
          row.set(pixels.subarray(start + from[i] * side, start + from[i] * side + side))
          for (let r = from[i] + 1; r < to[i]; r++) {
            const source = start + r * side
            for (let c = 0; c < side; c++) if (pixels[source + c] > row[c]) row[c] = pixels[source + c]
          }
          for (let j = 0; j < cell; j++) {
            let largest = 0
            for (let c = from[j]; c < to[j]; c++) if (row[c] > largest) largest = row[c]
            out[line + j] = scale[largest]
          }
        }
      }
    }
  }

  // -- what lies on them --------------------------------------------------------------------------------------------

  function compose() {
    const {cell, step, strip, dpr, cells, width, height} = geometry
    const colour = colours()
    context.clearRect(0, 0, width, height)
    context.putImageData(base, 0, 0)
    context.strokeStyle = colour.line
    const hair = Math.max(1, Math.round(dpr))
    context.lineWidth = hair
    context.globalAlpha = step - cell < 3 * hair ? 0.6 : 1 // where neighbours' hairlines meet
    for (const row of cells) {
      for (const [x, y] of row) context.strokeRect(x - hair / 2, y - hair / 2, cell + hair, cell + hair + strip)
    }
    context.globalAlpha = 1
    if (strip) underline(hair)
    names()
    const badges = new Map()
    for (const mark of model.marks || []) {
      const place = cells[mark.layer]?.[mark.head]
      if (!place) continue
      const key = `${mark.layer},${mark.head}`
      const before = badges.get(key) || 0
      if (draw(context, mark.state, ...place, cell, dpr, colour, before)) badges.set(key, before + 1)
    }
    const place = chosen() && cells[model.selected[0]][model.selected[1]]
    if (place) {
      const thick = Math.max(2, Math.round(2 * dpr))
      context.strokeStyle = colour.accent
      context.lineWidth = thick
      context.strokeRect(place[0] - thick / 2, place[1] - thick / 2, cell + thick, cell + thick + strip)
    }
    canvas.dataset.drawn = String(Number(canvas.dataset.drawn) + 1)
  }

  // The strips lie below the thumbnails, a hairline between, and so hide nothing of them.
  function underline(hair) {
    const {cell, strip, cells} = geometry
    const {values, top} = scores()
    cells.forEach((row, layer) => row.forEach(([x, y], head) => {
      const value = values[layer * shown.heads + head]
      if (Number.isNaN(value)) return
      context.fillStyle = scoreColour(value, top)
      context.fillRect(x, y + cell + hair, cell, strip - hair)
    }))
    context.fillStyle = colours().line
    for (const row of cells) for (const [x, y] of row) context.fillRect(x, y + cell, cell, hair)
  }

  function names() {
    const {cell, dpr, step, tall, left, top, rows, blocks, block, cells} = geometry
    const {layers, heads} = shown
    const colour = colours()
    const face = look.sans
    const size = 11 * dpr
    const wide = cell / dpr >= 22
    const every = Math.max(1, Math.ceil(14 * dpr / tall))
    const across = Math.max(1, Math.ceil((wide ? 24 : 18) * dpr / step))
    const write = (text, x, y, strong) => {
      context.fillStyle = strong ? colour.accent : colour.muted
      context.font = `${strong ? 600 : 400} ${size}px ${face}`
      context.fillText(text, x, y)
    }
    context.textBaseline = "middle"
    context.textAlign = "right"
    for (let layer = 0; layer < layers; layer++) {
      const strong = chosen() && model.selected[0] === layer
      if (layer % rows % every && !strong) continue
      write(`L${layer}`, cells[layer][0][0] - 7 * dpr, cells[layer][0][1] + cell / 2, strong)
    }
    context.textAlign = "center"
    for (let b = 0; b < blocks; b++) {
      for (let head = 0; head < heads; head++) {
        const strong = chosen() && model.selected[1] === head && Math.floor(model.selected[0] / rows) === b
        if (head % across && !strong) continue
        write(`H${head}`, b * block + left + head * step + cell / 2, top - 9 * dpr, strong)
      }
    }
  }

  function chosen() {
    const at = model.selected
    return at && at[0] >= 0 && at[0] < shown.layers && at[1] >= 0 && at[1] < shown.heads
  }

  // -- the line below -----------------------------------------------------------------------------------------------

  const bar = element("canvas", "bar")
  bar.width = 256
  bar.height = 1
  const low = element("span")
  low.textContent = "0"
  const high = element("span")
  const key = element("span")
  key.append(low, bar, high)
  const toggle = element("button")
  const scored = element("span")
  const scoreBar = element("canvas", "bar short")
  scoreBar.width = 255
  scoreBar.height = 1
  const [least, most, what] = [element("span"), element("span"), element("span", "what")]
  scored.append(least, scoreBar, most, what)
  toggle.type = "button"
  toggle.addEventListener("click", () => { model.scale = model.scale === "global" ? "head" : "global" })
  const note = element("span")
  const states = element("span")
  legend.append(key, scored, toggle, note, states)

  function describe() {
    const colour = colours()
    const {layers, heads, side} = shown
    const table = colourTable()
    const strip = new ImageData(256, 1)
    new Uint32Array(strip.data.buffer).set(table)
    bar.getContext("2d").putImageData(strip, 0, 0)
    const own = model.scale === "head"
    high.textContent = own ? "each head’s maximum" : "1"
    toggle.textContent = own ? "same scale for all" : "scale each head"
    const top = own ? "probability 1" : "each head’s own maximum"
    toggle.title = `Let the strongest colour mean ${top}`
    const shrunk = Math.max(1, side / geometry.cell)
    const n = shown.pooled * Math.ceil(shrunk)
    const most = Number.isInteger(shrunk) ? "" : "up to "
    note.textContent = n > 1 ? `each pixel: maximum over ${most}${n} × ${n} positions` : "rows: query · columns: key"
    describeScores()
    states.replaceChildren()
    for (const state of ["ablated", "frozen", "patched", "steered"]) {
      if (!(model.marks || []).some((mark) => mark.state === state)) continue
      const swatch = element("canvas", "swatch")
      swatch.width = swatch.height = 16 * geometry.dpr
      draw(swatch.getContext("2d"), state, geometry.dpr, geometry.dpr, 14 * geometry.dpr, geometry.dpr, colour, 0, true)
      const entry = element("span")
      const word = element("span")
      word.textContent = state
      entry.append(swatch, word)
      entry.className = "entry"
      states.append(entry)
    }
    canvas.setAttribute("aria-label",
      `Attention patterns of ${layers} layers × ${heads} heads. The arrow keys select a head.`)
  }

  function describeScores() {
    const found = scores()
    scored.hidden = !found && !model.scores_label
    for (const part of [least, scoreBar, most]) part.hidden = !found
    what.textContent = model.scores_label
    if (!found) return
    const ends = found.top.toPrecision(3)
    const below = found.values.some((value) => value < 0)
    least.textContent = below ? `−${Number(ends)}` : "0"
    most.textContent = `${below ? "+" : ""}${Number(ends)}`
    const ink = scoreBar.getContext("2d")
    for (let x = 0; x < scoreBar.width; x++) {
      const at = x / (scoreBar.width - 1)
      ink.fillStyle = scoreColour(below ? 2 * at - 1 : at, 1)
      ink.fillRect(x, 0, 1, 1)
    }
  }

  // -- the pointer and the keys -------------------------------------------------------------------------------------

  function hit(event) {
    if (!geometry) return null
    const {cell, step, tall, left, top, block, rows, blocks, dpr} = geometry
    const x = event.offsetX * dpr
    const y = event.offsetY * dpr
    const b = Math.min(blocks - 1, Math.floor(x / block))
    const head = Math.floor((x - b * block - left) / step)
    const down = Math.floor((y - top) / tall)
    const layer = b * rows + down
    if (head < 0 || head >= shown.heads || down < 0 || down >= rows || layer >= shown.layers) return null
    return {layer, head, rows: under(y - top - down * tall), cols: under(x - b * block - left - head * step)}
  }

  // The half-open range of the thumbnail's rows (or columns) that one pixel of the screen shows: enlarged, each
  // becomes several pixels; shrunk, a pixel shows the largest of several.
  function under(offset) {
    const {side} = shown
    const {cell} = geometry
    const pixel = Math.min(cell - 1, Math.floor(offset))
    if (cell < side) return [Math.floor(pixel * side / cell), Math.floor((pixel + 1) * side / cell)]
    const one = Math.floor((pixel + 0.5) * side / cell)
    return [one, one + 1]
  }

  function positions([from, to]) {
    const last = Math.min(to * shown.pooled, shown.pieces.length || Infinity) - 1
    return [from * shown.pooled, last]
  }

  function words([first, last], noun, plural) {
    return last > first ? `${plural} ${first}–${last}` : `${noun} ${first}`
  }

  function point(event) {
    const at = hit(event)
    canvas.classList.toggle("over", at !== null)
    if (!at) return leave()
    const {dpr, cell, strip, cells} = geometry
    const [x, y] = cells[at.layer][at.head]
    const grow = 1.5
    hover.hidden = false
    hover.style.left = `${x / dpr - grow}px`
    hover.style.top = `${y / dpr - grow}px`
    hover.style.width = `${cell / dpr + 2 * grow}px`
    hover.style.height = `${(cell + strip) / dpr + 2 * grow}px`
    const {side, heads, pixels, maxima, pieces} = shown
    const index = at.layer * heads + at.head
    let value = 0
    for (let row = at.rows[0]; row < at.rows[1]; row++) {
      const start = (index * side + row) * side
      for (let col = at.cols[0]; col < at.cols[1]; col++) value = Math.max(value, pixels[start + col])
    }
    const query = positions(at.rows)
    const target = positions(at.cols)
    const several = query[1] > query[0] || target[1] > target[0]
    const piece = ([first, last]) => {
      const text = element("span", "piece")
      text.textContent = last === first && first < pieces.length ? clip(pieces[first]) : ""
      return text.textContent ? [quiet(" "), text] : []
    }
    const name = element("b")
    name.textContent = `L${at.layer}H${at.head}`
    const facts = (model.marks || []).filter((m) => m.layer === at.layer && m.head === at.head).map((m) => m.state)
    if (maxima) facts.push(`max ${maxima[index].toFixed(2)}`)
    const number = element("b")
    number.textContent = (value / 255).toFixed(2)
    label.replaceChildren(name, quiet([...facts.map((fact) => ` · ${fact}`), " · "].join("")),
      quiet(words(query, "query", "queries")), ...piece(query), quiet(" → "),
      quiet(words(target, "key", "keys")), ...piece(target), quiet(several ? ": max in cell " : ": "), number, ...scoreLine(index))
    if (!label.matches(":popover-open")) label.showPopover()
    const {clientX, clientY} = event
    const {width, height} = label.getBoundingClientRect()
    label.style.left = `${Math.max(8, Math.min(clientX + 14, window.innerWidth - width - 8))}px`
    label.style.top = `${clientY + 20 + height > window.innerHeight ? clientY - height - 12 : clientY + 20}px`
  }

  function scoreLine(index) {
    const found = scores()
    if (!found || Number.isNaN(found.values[index])) return []
    const number = element("b")
    const value = found.values[index]
    number.textContent = `${value > 0 ? "+" : ""}${Number(value.toPrecision(4))}`.replaceAll("-", "−")
    return [quiet(`\n${model.scores_label}: `), number]
  }

  function leave() {
    hover.hidden = true
    canvas.classList.remove("over")
    if (label.matches(":popover-open")) label.hidePopover()
  }

  function select(layer, head) {
    layer = Math.max(0, Math.min(shown.layers - 1, layer))
    head = Math.max(0, Math.min(shown.heads - 1, head))
    if (model.selected && model.selected[0] === layer && model.selected[1] === head) return
    model.selected = [layer, head]
  }

  canvas.addEventListener("pointermove", point)
  canvas.addEventListener("pointerleave", leave)
  canvas.addEventListener("click", (event) => {
    const at = hit(event)
    if (at) select(at.layer, at.head)
  })
  canvas.addEventListener("keydown", (event) => {
    if (!geometry || event.ctrlKey || event.metaKey || event.altKey) return
    const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      Home: [0, -shown.heads], End: [0, shown.heads], PageUp: [-shown.layers, 0], PageDown: [shown.layers, 0]}
    const move = moves[event.key]
    if (!move) return
    event.preventDefault()
    if (chosen()) select(model.selected[0] + move[0], model.selected[1] + move[1])
    else select(0, 0)
  })

  // -- when to draw -------------------------------------------------------------------------------------------------

  let stale = true // whether arrays, scale or ground changed since the thumbnails were coloured, perhaps out of sight

  function ask() {
    // One message may change several properties, one after the other: draw once, when all are in.
    pending ??= requestAnimationFrame(paint)
  }

  function recolour() {
    stale = true
    ask()
  }

  function paint() {
    pending = null
    dress()
    if (stale) take()
    const next = lay()
    if (!next) return
    const moved = JSON.stringify(next) !== canvas.dataset.geometry
    geometry = next
    if (moved) {
      canvas.width = next.width
      canvas.height = next.height
      canvas.style.width = `${next.width / next.dpr}px`
      canvas.style.height = `${next.height / next.dpr}px`
      canvas.dataset.geometry = JSON.stringify(next)
      leave()
    }
    if (stale || moved) colour()
    stale = false
    compose()
    const before = below()
    describe()
    if (below() !== before) ask()
  }

  function dress() {
    const colour = colours()
    for (const name of ["surface", "ink", "muted", "line", "accent"]) sheet.style.setProperty(`--${name}`, colour[name])
    sheet.style.setProperty("--sans", look.sans)
    sheet.style.setProperty("--mono", look.mono)
    sheet.classList.toggle("busy", model.busy)
    canvas.setAttribute("aria-busy", String(model.busy))
  }

  function announce() {
    if (chosen()) {
      const [layer, head] = model.selected
      const top = shown.maxima ? `, maximum ${shown.maxima[layer * shown.heads + head].toFixed(2)}` : ""
      spoken.textContent = `Layer ${layer}, head ${head}${top}`
    }
    ask()
  }

  model.on(["thumbnails", "maxima", "shape", "pooled", "pieces", "scale", "dark", "max_height"], recolour)
  model.on(["marks", "scores", "scores_top", "scores_label"], ask)
  model.on("selected", announce)
  model.on("busy", dress)
  const observer = new ResizeObserver(() => { if (sheet.clientWidth !== width) ask() })
  observer.observe(sheet)
  model.on("remove", () => {
    observer.disconnect()
    cancelAnimationFrame(pending)
  })
  dress()
  ask()
  return sheet

  function quiet(text) {
    const span = element("span", "quiet")
    span.textContent = text
    return span
  }
}

function element(tag, name) {
  const made = document.createElement(tag)
  if (name) made.className = name
  return made
}

// A size in pixels near `cell`, at most `room`, at which every position gets equally many pixels or shares one equally.
function even(cell, room, side) {
  const size = room >= side ? Math.floor(room / side) * side : side / Math.ceil(side / room)
  return Number.isInteger(size) && size >= cell * 0.9 ? size : cell
}

function clip(text) {
  const characters = Array.from(text)
  return characters.length > 16 ? `${characters.slice(0, 15).join("")}…` : text
}

// Draws a state on the cell at (x, y); says whether it took up a corner.
function draw(context, state, x, y, cell, dpr, colour, before, swatch = false) {
  const tone = colour[state]
  context.save()
  context.lineCap = "round"
  if (state === "ablated") {
    context.globalAlpha = swatch ? 0 : 0.55
    context.fillStyle = colour.paper
    context.fillRect(x, y, cell, cell)
    context.globalAlpha = 1
    context.strokeStyle = tone
    context.lineWidth = Math.max(1.5, Math.min(2.5, cell / dpr / 24)) * dpr
    const inset = cell * 0.12
    context.beginPath()
    context.moveTo(x + inset, y + cell - inset)
    context.lineTo(x + cell - inset, y + inset)
    context.stroke()
    context.restore()
    return false
  }
  const size = swatch ? cell : Math.max(7 * dpr, Math.min(18 * dpr, cell * 0.28))
  const right = x + cell - before * (size + dpr)
  if (state === "frozen") {
    if (!swatch) {
      context.strokeStyle = tone
      context.lineWidth = 2 * dpr
      context.strokeRect(x + dpr, y + dpr, cell - 2 * dpr, cell - 2 * dpr)
    }
    context.fillStyle = tone
    context.fillRect(right - size, y, size, size)
    context.strokeStyle = colour.paper
    context.lineWidth = Math.max(1, size / 11)
    const cx = right - size / 2, cy = y + size / 2, reach = size * 0.34
    for (let arm = 0; arm < 6; arm++) {
      const angle = Math.PI * (arm / 3 + 1 / 6)
      const dx = Math.cos(angle), dy = Math.sin(angle)
      context.beginPath()
      context.moveTo(cx, cy)
      context.lineTo(cx + reach * dx, cy + reach * dy)
      if (size / dpr >= 11) {
        for (const turn of [-1, 1]) {
          const a = angle + turn * Math.PI / 4
          context.moveTo(cx + 0.55 * reach * dx, cy + 0.55 * reach * dy)
          context.lineTo(cx + reach * (0.55 * dx + 0.4 * Math.cos(a)), cy + reach * (0.55 * dy + 0.4 * Math.sin(a)))
        }
      }
      context.stroke()
    }
  } else {
    context.fillStyle = tone
    context.beginPath()
    context.moveTo(right - size, y)
    context.lineTo(right, y)
    context.lineTo(right, y + size)
    context.closePath()
    context.fill()
  }
  context.restore()
  return true
}
