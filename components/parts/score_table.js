// Rows with a number in each column, sorted by one of them; the arrow keys go from row to row. Text is only ever set as text.

const MOST = 300 // rows in the page

const CSS = `
.root { font: 12px/16px var(--sans); color: var(--ink); font-variant-numeric: tabular-nums; max-height: 356px; overflow-y: auto;
  scrollbar-width: thin; border-bottom: 1px solid var(--line); }
table { border-collapse: separate; border-spacing: 0; width: 100%; table-layout: fixed; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: 0; font-weight: 400; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
col.name { width: 56px; }
th button { all: unset; box-sizing: border-box; width: 100%; padding: 2px 3px 4px 0; text-align: right; color: var(--muted); cursor: pointer;
  font: 11px/14px var(--sans); letter-spacing: -.01em; }
th button:hover { color: var(--ink); }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; border-radius: 4px; }
th[aria-sort=descending] button { color: var(--accent); box-shadow: inset 0 -2px 0 var(--accent); }

tbody tr { cursor: pointer; outline: none; }
tbody th { font: 12px/20px var(--mono); text-align: left; padding: 0 4px; }
td { position: relative; height: 22px; padding: 0 3px 2px; text-align: right; }
td i { position: absolute; right: 3px; bottom: 1px; height: 3px; border-radius: 1px; background: var(--accent); opacity: .75; }
td i.below { background: var(--baseline); }
td.by { font-weight: 600; }
tbody tr:hover th, tbody tr:hover td { background: color-mix(in srgb, var(--accent) 8%, transparent); }
tbody tr.chosen th, tbody tr.chosen td { background: color-mix(in srgb, var(--accent) 16%, transparent); }
tbody tr:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
.more { color: var(--muted); padding: 4px; }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const table = document.createElement("table")
  const more = document.createElement("div")
  style.textContent = CSS
  root.className = "root"
  more.className = "more"
  root.append(style, table, more)
  let order = [] // the rows that are in the page, as in names

  function element(tag, into, text) {
    const made = document.createElement(tag)
    if (text !== undefined) made.textContent = text
    into.append(made)
    return made
  }

  function figures(value) {
    if (Number.isNaN(value)) return "–"
    const rounded = Math.abs(value) < 5e-4 ? 0 : value
    return (rounded < 0 ? "−" : "") + Math.abs(rounded).toFixed(Math.abs(rounded) >= 10 ? 1 : Math.abs(rounded) >= 1 ? 2 : 3)
  }

  function dress() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    table.setAttribute("aria-label", model.label)
  }

  function paint() {
    const {names, columns} = model
    const bytes = model.values
    if (!bytes || bytes.byteLength !== 4 * names.length * columns.length) return
    const values = new Float32Array(bytes)
    const by = columns.findIndex((column) => column.name === model.by)
    const held = root.getRootNode().activeElement?.closest?.("tr")
    const heldRow = held && table.contains(held) ? held.dataset.row : undefined
    order = names.map((_, row) => row)
    const key = (row) => { const value = values[row * columns.length + by]; return Number.isNaN(value) ? -Infinity : value }
    if (by >= 0) order.sort((one, other) => key(other) - key(one) || one - other)
    order = order.slice(0, MOST)
    table.replaceChildren()
    const widths = element("colgroup", table)
    element("col", widths).className = "name"
    const head = element("tr", element("thead", table))
    element("th", head, "").scope = "col"
    columns.forEach((column, at) => {
      const cell = element("th", head)
      cell.scope = "col"
      cell.setAttribute("aria-sort", at === by ? "descending" : "none")
      const button = element("button", cell, column.label)
      button.type = "button"
      button.title = column.hint
      button.addEventListener("click", () => model.send_msg({by: column.name}))
    })
    const body = element("tbody", table)
    for (const row of order) {
      const line = element("tr", body)
      line.dataset.row = row
      element("th", line, names[row]).scope = "row"
      columns.forEach((column, at) => {
        const value = values[row * columns.length + at]
        const cell = element("td", line, figures(value))
        if (at === by) cell.className = "by"
        if (Number.isNaN(value)) return
        const bar = element("i", cell)
        bar.style.width = `calc(${Math.min(1, Math.abs(value) / (column.top || 1))} * (100% - 10px))`
        if (value < 0) bar.className = "below"
      })
      line.addEventListener("click", () => model.send_msg({row}))
    }
    more.textContent = names.length > MOST ? `and ${(names.length - MOST).toLocaleString("en-US")} more` : ""
    choose()
    if (heldRow !== undefined) table.querySelector(`tr[data-row="${heldRow}"]`)?.focus()
  }

  // Apart from paint: what has been clicked keeps the focus.
  function choose() {
    const lines = [...table.querySelectorAll("tbody tr")]
    for (const line of lines) {
      const chosen = Number(line.dataset.row) === model.chosen
      line.classList.toggle("chosen", chosen)
      line.setAttribute("aria-selected", String(chosen))
      line.tabIndex = -1
    }
    const stop = table.querySelector("tr.chosen") ?? lines[0]
    if (stop) stop.tabIndex = 0
  }

  table.addEventListener("keydown", (event) => {
    const line = event.target.closest("tbody tr")
    if (!line) return
    const next = {ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling}[event.key]
    if (next) next.focus()
    else if (event.key === "Enter" || event.key === " ") model.send_msg({row: Number(line.dataset.row)})
    else if (!["ArrowDown", "ArrowUp"].includes(event.key)) return
    event.preventDefault()
    event.stopPropagation() // the page's own arrow keys go from head to head
  })

  dress()
  paint()
  model.on("dark", dress)
  for (const name of ["values", "by"]) model.on(name, paint)
  model.on("chosen", choose)
  return root
}
