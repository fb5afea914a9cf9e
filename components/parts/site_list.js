// Sites with a number each and a bar about zero; a click or Enter chooses one. Text is only ever set as text.

const CSS = `
.root { display: grid; grid-template-columns: max-content minmax(24px, 1fr) minmax(52px, max-content); column-gap: 8px;
  font: 12px/16px var(--sans); color: var(--ink); font-variant-numeric: tabular-nums; }
.root.both { grid-template-columns: max-content minmax(24px, 1fr) repeat(2, minmax(52px, max-content)); }
.row { all: unset; box-sizing: border-box; display: grid; grid-column: 1 / -1; grid-template-columns: subgrid; align-items: center;
  height: 20px; padding: 0 4px; border-radius: 4px; }
button.row { cursor: pointer; }
button.row:hover { background: color-mix(in srgb, var(--accent) 10%, transparent); }
button.row:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
button.row.chosen { box-shadow: inset 0 0 0 1.5px var(--accent); }
.site { font: 12px/20px var(--mono); white-space: pre; overflow: hidden; text-overflow: ellipsis; }
.track { position: relative; height: 10px; background: linear-gradient(var(--line), var(--line)) center / 1px 100% no-repeat; }
.bar { position: absolute; top: 0; height: 100%; min-width: 1px; border-radius: 1px; }
.pair .track { height: 12px; }
.pair .bar { height: 7px; }
.pair .bar.before { top: 8px; height: 3px; background: var(--baseline); }
.number { text-align: right; white-space: nowrap; }
.top, .estimate { color: var(--muted); }
.top .site, .rest .site { font: inherit; }
.rest { color: var(--muted); }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const list = document.createElement("div")
  style.textContent = CSS
  list.setAttribute("role", "group")
  root.append(style, list)

  function cell(row, name, text) {
    const made = document.createElement("span")
    made.className = name
    if (text !== undefined) made.textContent = text
    row.append(made)
    return made
  }

  function paint() {
    const look = model.esm_constants
    const ground = model.dark ? "dark" : "light"
    for (const [name, colour] of Object.entries(look[ground])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    const rows = model.rows || []
    const both = rows.some((row) => row.estimate)
    list.className = "root" + (both ? " both" : "")
    list.setAttribute("aria-label", model.name_of_list)
    const held = [...list.querySelectorAll("button.row")].indexOf(list.getRootNode().activeElement)
    const head = document.createElement("div")
    head.className = "row top"
    const [what, change, estimate] = model.heads
    cell(head, "site", what)
    cell(head, "")
    cell(head, "number", change)
    if (both) cell(head, "number", estimate)
    list.replaceChildren(...(rows.length ? [head] : []), ...rows.map((row, at) => {
      const line = document.createElement(row.rest ? "div" : "button")
      line.className = "row"
      if (row.rest) line.classList.add("rest")
      else line.type = "button"
      line.title = row.hint
      cell(line, "site", row.site)
      const track = cell(line, "track")
      const bar = stretch(cell(track, "bar"), row.change)
      bar.style.background = look.signs[ground][Number(row.change > 0)]
      if (typeof row.before === "number") {
        line.classList.add("pair")
        stretch(cell(track, "bar before"), row.before)
      }
      cell(line, "number", row.label)
      if (both) cell(line, "number estimate", row.estimate || "")
      if (!row.rest) line.addEventListener("click", () => model.send_msg({at}))
      return line
    }))
    choose()
    if (held >= 0) list.querySelectorAll("button.row")[held]?.focus() // who goes through them by key, goes on
  }

  function stretch(bar, value) {
    const half = 50 * Math.min(1, Math.abs(value) / model.top)
    bar.style.width = `${half}%`
    bar.style.left = `${value < 0 ? 50 - half : 50}%`
    return bar
  }

  // Apart from paint: what has been clicked keeps the focus.
  function choose() {
    list.querySelectorAll("button.row").forEach((line, at) => {
      line.classList.toggle("chosen", at === model.chosen)
      line.setAttribute("aria-pressed", String(at === model.chosen))
    })
  }

  for (const name of ["rows", "heads", "top", "dark", "name_of_list"]) model.on(name, paint)
  model.on("chosen", choose)
  paint()
  return root
}
