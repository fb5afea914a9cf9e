// Tokens with a bar each: what comes next, what a head promotes. Text is only ever set as text.

const CSS = `
.root { container-type: inline-size; font: 12px/16px var(--sans); color: var(--ink); font-variant-numeric: tabular-nums; }
.row { display: grid; grid-template-columns: minmax(0, 36%) minmax(16px, 1fr) 60px; align-items: center; gap: 8px; height: 24px; }
.row.changes { grid-template-columns: minmax(0, 36%) minmax(16px, 1fr) 40px 48px; }
.piece { font: 13px/24px var(--mono); white-space: pre; overflow: hidden; text-overflow: ellipsis; unicode-bidi: isolate; }
.track { position: relative; height: 12px; }
.bar { position: absolute; left: 0; height: 5px; border-radius: 2px; min-width: 1px; }
.now { top: 0; background: var(--accent); }
.before { top: 7px; background: var(--baseline); }
.single .now { height: 10px; top: 1px; }
.negative .now { background: var(--baseline); }
.number { text-align: right; color: var(--ink); white-space: nowrap; }
.change { text-align: right; color: var(--muted); white-space: nowrap; }
.empty { color: var(--muted); padding: 4px 0; }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  style.textContent = CSS
  const list = document.createElement("div")
  root.className = "root"
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
    const colours = look[model.dark ? "dark" : "light"]
    for (const [name, colour] of Object.entries(colours)) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    const rows = model.rows || []
    const top = model.top || Math.max(1e-9, ...rows.flatMap((row) => [Math.abs(row.value), Math.abs(row.before ?? 0)]))
    const changes = rows.some((row) => row.change)
    list.replaceChildren(...rows.map((row) => {
      const line = document.createElement("div")
      line.className = "row" + (row.before === undefined || row.before === null ? " single" : "")
        + (row.value < 0 ? " negative" : "") + (changes ? " changes" : "")
      if (row.hint) line.title = row.hint
      const piece = cell(line, "piece", row.piece)
      piece.dir = "ltr"
      const track = cell(line, "track")
      cell(track, "bar now").style.width = `${100 * Math.min(1, Math.abs(row.value) / top)}%`
      if (row.before !== undefined && row.before !== null)
        cell(track, "bar before").style.width = `${100 * Math.min(1, Math.abs(row.before) / top)}%`
      cell(line, "number", row.label)
      if (changes) cell(line, "change", row.change || "")
      return line
    }))
    if (!rows.length && model.empty) cell(list, "empty", model.empty)
  }

  for (const name of ["rows", "dark", "top", "empty"]) model.on(name, paint)
  paint()
  return root
}
