// The lens: a table of layers × positions, of which only what is in view is asked for and drawn. Text is only set as text.

const WIDE = 76, LEFT = 44, TOP = 22 // px
const LOWEST = 14, HIGHEST = 22 // px of a row: as high as there is room for, so that as few models as can be need to scroll
const ASK = 60 // ms that the view must stand still before its cells are asked for

const CSS = `
.root { position: relative; font: 12px/16px var(--sans); color: var(--ink); font-variant-numeric: tabular-nums; }
.scroll { position: relative; box-sizing: content-box; overflow: auto; width: fit-content; max-width: 100%; outline: none; border: 1px solid var(--line); border-radius: 4px; scrollbar-width: thin; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.across, .down, .corner { position: sticky; background: var(--paper); z-index: 2; }
.across { top: 0; height: ${TOP}px; z-index: 3; }
.down { left: 0; width: ${LEFT}px; float: left; }
.corner { left: 0; width: ${LEFT}px; height: ${TOP}px; z-index: 4; float: left; }
.name { position: absolute; overflow: hidden; white-space: pre; text-overflow: ellipsis; color: var(--muted); box-sizing: border-box; }
.across .name { width: ${WIDE}px; height: ${TOP}px; line-height: ${TOP}px; text-align: center; font: 12px/${TOP}px var(--mono); padding: 0 3px; }
.down .name { width: ${LEFT - 6}px; text-align: right; }
.name.chosen { color: var(--accent); font-weight: 600; }
.cell { position: absolute; width: ${WIDE - 1}px; box-sizing: border-box; padding: 0 4px; font-family: var(--mono); white-space: pre; overflow: hidden; text-overflow: ellipsis; text-align: center; cursor: pointer;
  user-select: none; border-radius: 2px; }
.cell.unknown { background: repeating-linear-gradient(135deg, transparent 0 5px, color-mix(in srgb, var(--line) 55%, transparent) 5px 6px); }
.cell:hover { box-shadow: inset 0 0 0 1.5px var(--muted); }
.cell.selected { box-shadow: inset 0 0 0 2px var(--accent), inset 0 0 0 3px var(--paper); }
.cell.source { box-shadow: inset 0 0 0 2px var(--patched); }
.cell.target { box-shadow: inset 0 0 0 2px var(--patched); filter: brightness(1.1); }
.cell.refused { cursor: not-allowed; }
.mark { position: absolute; pointer-events: none; border: 2px solid; border-radius: 2px; box-sizing: border-box; z-index: 1; }
.busy .cell { opacity: .75; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: center; margin-top: 8px; min-height: 20px; color: var(--muted); padding-bottom: 8px; }
.legend span { display: inline-flex; align-items: center; gap: 8px; }
.bar { width: 96px; height: 8px; border-radius: 2px; box-shadow: 0 0 0 1px var(--line); }
.label { position: fixed; inset: auto; margin: 0; border: 0; padding: 6px 10px; border-radius: 6px; z-index: 2000; pointer-events: none;
  background: var(--surface); color: var(--ink); box-shadow: 0 0 0 1px var(--line), 0 6px 20px rgba(10, 8, 40, .18);
  font: 12px/16px var(--sans); font-variant-numeric: tabular-nums; white-space: pre; }
.label b { font-weight: 600; }
.label .quiet { color: var(--muted); }
.label .piece { font-family: var(--mono); }
.label .line { display: grid; grid-template-columns: minmax(96px, max-content) 1fr; column-gap: 16px; }
.label .line span:last-child { text-align: right; }
`

const NUMBERS = {
  probability: (cell) => cell.probabilities[0],
  entropy: (cell) => cell.entropy,
  divergence: (cell) => cell.divergence,
  chosen: (cell) => cell.chosen,
  rank: (cell) => cell.rank,
}

export function render({model}) {
  const root = element("div", "root")
  const style = element("style")
  style.textContent = CSS
  const scroll = element("div", "scroll")
  scroll.tabIndex = 0
  scroll.setAttribute("role", "grid")
  scroll.setAttribute("aria-label", "Lens: layers × positions. The arrow keys select a cell.")
  const across = element("div", "across"), down = element("div", "down"), corner = element("div", "corner")
  const field = element("div", "field")
  field.style.position = "absolute"
  across.append(corner)
  scroll.append(across, down, field)
  const legend = element("div", "legend")
  const label = element("div", "label")
  label.popover = "manual"
  label.setAttribute("role", "tooltip")
  root.append(style, scroll, legend, label)

  let known = new Map() // "row,column" -> what the lens reads there
  let key = "" // of the run that they are of
  let stale = false // whether what is shown is of the run before
  let asked = "", timer = null, placed = false
  let drag = null
  let HIGH = HIGHEST

  const size = () => [model.rows.length, model.pieces.length]

  function view() {
    const [rows, columns] = size()
    const r0 = Math.max(0, Math.floor(scroll.scrollTop / HIGH)), c0 = Math.max(0, Math.floor(scroll.scrollLeft / WIDE))
    const r1 = Math.min(rows, Math.ceil((scroll.scrollTop + scroll.clientHeight - TOP) / HIGH))
    const c1 = Math.min(columns, Math.ceil((scroll.scrollLeft + scroll.clientWidth - LEFT) / WIDE))
    return [r0, r1, c0, c1]
  }

  function ask() {
    clearTimeout(timer)
    timer = setTimeout(() => {
      const [r0, r1, c0, c1] = view()
      if (r1 <= r0 || c1 <= c0 || !scroll.clientWidth) return
      const next = JSON.stringify([r0, r1, c0, c1])
      if (next === asked) return
      asked = next
      model.send_msg({do: "view", rows: [r0, r1], columns: [c0, c1]})
    }, ASK)
  }

  // Cells come with the key of their run: those of another one make room only once the first new ones are here.
  function take() {
    const {key: of, row, column, cells} = model.cells
    if (!cells) return
    if (of !== key) known = new Map()
    key = of
    stale = false
    cells.forEach((line, r) => line.forEach((cell, c) => known.set(`${row + r},${column + c}`, cell)))
    draw()
  }

  function lay() {
    const [rows, columns] = size()
    HIGH = Math.max(LOWEST, Math.min(HIGHEST, Math.floor((model.max_height - TOP - 12) / Math.max(1, rows))))
    field.style.fontSize = down.style.fontSize = HIGH < 18 ? "11px" : "12px"
    scroll.style.maxHeight = `${model.max_height}px`
    scroll.hidden = !columns
    across.style.width = field.style.width = `${LEFT + columns * WIDE}px`
    down.style.height = field.style.height = `${rows * HIGH}px`
    field.style.top = `${TOP}px`
    field.style.left = `${LEFT}px`
    field.style.width = `${columns * WIDE}px`
    scroll.style.height = `${TOP + rows * HIGH + (LEFT + columns * WIDE > scroll.clientWidth ? 12 : 0)}px`
    if (!placed && columns && scroll.clientWidth) { // what is predicted in the end is what one looks for first
      placed = true
      scroll.scrollTop = scroll.scrollHeight
      reveal()
    }
    draw()
    ask()
  }

  function range() {
    const colour = model.colour
    if (colour === "probability" || colour === "chosen") return 1
    if (colour === "rank") return Math.log10(model.d_vocab)
    if (colour === "entropy") return Math.log(model.d_vocab)
    const sorted = Array.from(known.values(), (cell) => cell.divergence).sort((a, b) => a - b)
    return Math.max(1, sorted[Math.floor(0.95 * (sorted.length - 1))] ?? 1) // what is further off would hide all else
  }

  function share(cell, top) {
    const value = NUMBERS[model.colour](cell)
    if (value === null || value === undefined) return 0
    return model.colour === "rank" ? 1 - Math.log10(value + 1) / top : Math.min(1, value / top)
  }

  function paint(made, cell, top) {
    const at = Math.round(255 * Math.max(0, share(cell, top)))
    const rgb = new Uint8Array(model.palette, (model.dark ? 768 : 0) + 3 * at, 3)
    made.style.background = `rgb(${rgb[0]} ${rgb[1]} ${rgb[2]})`
    const light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    made.style.color = light > 140 ? "#1b1a27" : "#f3f1ff"
  }

  function draw() {
    const [r0, r1, c0, c1] = view()
    const look = model.esm_constants[model.dark ? "dark" : "light"]
    const top = range()
    const [row, column] = model.selected || [-1, -1]
    const made = [], left = [], above = []
    for (let r = r0; r < r1; r++) {
      const name = element("div", r === row ? "name chosen" : "name")
      name.textContent = model.rows[r]
      name.style.top = `${r * HIGH}px`
      name.style.lineHeight = name.style.height = `${HIGH}px`
      left.push(name)
      for (let c = c0; c < c1; c++) {
        const cell = known.get(`${r},${c}`)
        const box = element("div", "cell")
        box.style.left = `${c * WIDE}px`
        box.style.top = `${r * HIGH}px`
        box.style.height = box.style.lineHeight = `${HIGH - 1}px`
        box.dataset.row = r
        box.dataset.column = c
        box.setAttribute("role", "gridcell")
        if (cell) {
          box.textContent = cell.pieces[0]
          paint(box, cell, top)
        } else box.classList.add("unknown")
        if (r === row && c === column) box.classList.add("selected")
        if (drag && drag.moved && r === drag.row && c === drag.column) box.classList.add("source")
        if (drag && drag.over && r === drag.over[0] && c === drag.over[1]) box.classList.add("target")
        made.push(box)
      }
    }
    for (let c = c0; c < c1; c++) {
      const name = element("div", c === column ? "name chosen" : "name")
      name.textContent = model.pieces[c]
      name.title = `${model.pieces[c]}  position ${c}`
      name.style.left = `${LEFT + c * WIDE}px`
      above.push(name)
    }
    for (const mark of model.marks) {
      const [from, to] = mark.columns
      if (mark.row < r0 || mark.row >= r1 || to <= c0 || from >= c1) continue
      const frame = element("div", "mark")
      frame.style.borderColor = look[mark.state]
      frame.style.left = `${from * WIDE - 1}px`
      frame.style.top = `${mark.row * HIGH - 1}px`
      frame.style.width = `${(to - from) * WIDE + 1}px`
      frame.style.height = `${HIGH + 1}px`
      made.push(frame)
    }
    field.replaceChildren(...made)
    down.replaceChildren(...left)
    across.replaceChildren(corner, ...above)
    root.classList.toggle("busy", stale)
    field.dataset.known = String(known.size)
    field.dataset.key = key
  }

  // -- the line below ------------------------------------------------------------------------------------------------

  function describe() {
    const bar = element("canvas", "bar")
    bar.width = 256
    bar.height = 1
    const strip = new ImageData(256, 1)
    const rgb = new Uint8Array(model.palette, model.dark ? 768 : 0, 768)
    for (let at = 0; at < 256; at++) strip.data.set([rgb[3 * at], rgb[3 * at + 1], rgb[3 * at + 2], 255], 4 * at)
    bar.getContext("2d").putImageData(strip, 0, 0)
    const ends = {
      probability: ["0", "1"], chosen: ["0", "1"], rank: [`rank ${model.d_vocab.toLocaleString("en")}`, "rank 1"],
      entropy: ["0", `${range().toPrecision(3)} nats`], divergence: ["0", `${range().toPrecision(3)} nats and more`],
    }[model.colour]
    const scale = element("span")
    scale.append(text(ends[0]), bar, text(ends[1]))
    const note = text("each row: what the model would say if it ended there · drag a cell onto another to patch it")
    legend.replaceChildren(scale, note)
  }

  // -- the pointer and the keys --------------------------------------------------------------------------------------

  const place = (target) => target?.classList?.contains("cell") ? [Number(target.dataset.row), Number(target.dataset.column)] : null
  const under = (event) => place(root.getRootNode().elementFromPoint(event.clientX, event.clientY))

  field.addEventListener("pointerdown", (event) => {
    const at = place(event.target)
    if (!at || event.button) return
    drag = {row: at[0], column: at[1], x: event.clientX, y: event.clientY, moved: false, over: null}
  })
  const moved = (event) => {
    if (!drag) return
    if (!drag.moved && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 6) return
    const begins = !drag.moved
    drag.moved = true
    hide()
    const at = under(event)
    const next = at && (at[0] !== drag.row || at[1] !== drag.column) ? at : null
    if (begins || String(next) !== String(drag.over)) { drag.over = next; draw() }
  }
  const dropped = () => {
    if (!drag) return
    const {row, column, over, moved} = drag
    drag = null
    if (!moved) select(row, column)
    else if (over) model.send_msg({do: "drop", source: [row, column], target: over})
    draw()
  }
  window.addEventListener("pointermove", moved)
  window.addEventListener("pointerup", dropped)

  field.addEventListener("mouseover", (event) => {
    const at = place(event.target)
    if (!at || drag?.moved) return hide()
    const cell = known.get(String(at))
    if (!cell) return hide()
    const head = element("div")
    head.append(bold(`${model.rows[at[0]]}  `), piece(model.pieces[at[1]]), quiet(`  position ${at[1]}`))
    const lines = cell.pieces.map((each, n) => line(piece(each), text(cell.probabilities[n].toFixed(3))))
    const facts = [line(quiet("entropy"), quiet(`${cell.entropy.toFixed(2)} nats`)),
      line(quiet("KL to the output"), quiet(`${cell.divergence.toFixed(2)} nats`))]
    if (cell.rank !== null && cell.rank !== undefined && model.chosen) {
      const name = element("span")
      name.append(quiet("chosen "), piece(model.chosen))
      facts.push(line(name, text(`${cell.chosen.toPrecision(3)}, rank ${(cell.rank + 1).toLocaleString("en")}`)))
    }
    label.replaceChildren(head, ...lines, ...facts)
    label.showPopover?.()
    const box = event.target.getBoundingClientRect()
    const own = label.getBoundingClientRect()
    const x = box.right + 8 + own.width > window.innerWidth ? box.left - 8 - own.width : box.right + 8
    label.style.left = `${Math.max(4, x)}px`
    label.style.top = `${Math.min(window.innerHeight - own.height - 4, Math.max(4, box.top - 8))}px`
  })
  scroll.addEventListener("mouseleave", hide)
  function hide() { if (label.matches(":popover-open")) label.hidePopover() }

  function select(row, column) {
    model.send_msg({do: "select", row, column})
  }

  scroll.addEventListener("keydown", (event) => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key]
    if (!step) return
    event.preventDefault()
    event.stopPropagation()
    const [rows, columns] = size()
    const [row, column] = model.selected || [rows - 1, columns - 1]
    select(Math.max(0, Math.min(rows - 1, row + step[0])), Math.max(0, Math.min(columns - 1, column + step[1])))
  })

  function reveal() {
    if (!model.selected) return
    const [row, column] = model.selected
    if (row >= 0) {
      const y = row * HIGH
      if (y < scroll.scrollTop) scroll.scrollTop = y
      else if (y + HIGH > scroll.scrollTop + scroll.clientHeight - TOP - 12) scroll.scrollTop = y + HIGH - scroll.clientHeight + TOP + 12
    }
    const x = column * WIDE
    if (x < scroll.scrollLeft) scroll.scrollLeft = x
    else if (x + WIDE > scroll.scrollLeft + scroll.clientWidth - LEFT) scroll.scrollLeft = x + WIDE - scroll.clientWidth + LEFT
  }

  function dress() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    describe()
    draw()
  }

  function text(value) { const made = element("span"); made.textContent = value; return made }
  function bold(value) { const made = element("b"); made.textContent = value; return made }
  function quiet(value) { const made = element("span", "quiet"); made.textContent = value; return made }
  function piece(value) { const made = element("span", "piece"); made.textContent = value; return made }
  function line(...parts) { const made = element("div", "line"); made.append(...parts); return made }

  scroll.addEventListener("scroll", () => { hide(); draw(); ask() })
  model.on(["rows", "pieces", "max_height"], () => { asked = ""; lay() })
  model.on("cells", () => { take(); describe() })
  model.on("wanted", () => { stale = true; root.classList.add("busy") })
  model.on(["marks"], draw)
  model.on(["colour", "chosen"], () => { describe(); draw() })
  model.on("selected", () => { reveal(); draw() })
  model.on("dark", dress)
  const observer = new ResizeObserver(() => lay())
  observer.observe(scroll)
  model.on("remove", () => {
    observer.disconnect()
    clearTimeout(timer)
    window.removeEventListener("pointermove", moved)
    window.removeEventListener("pointerup", dropped)
  })
  dress()
  take()
  lay()
  return root
}

function element(tag, name) {
  const made = document.createElement(tag)
  if (name) made.className = name
  return made
}
