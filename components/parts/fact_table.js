// Two columns: what, and how much. Text is only ever set as text.

const CSS = `
.root { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; font: 13px/20px var(--sans); color: var(--ink);
  font-variant-numeric: tabular-nums; }
.what { color: var(--muted); }
.much { overflow-wrap: anywhere; }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const grid = document.createElement("div")
  grid.className = "root"
  style.textContent = CSS
  root.append(style, grid)
  function paint() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) grid.style.setProperty(`--${name}`, colour)
    grid.style.setProperty("--sans", look.sans)
    grid.replaceChildren(...model.rows.flatMap(([what, much]) => [["what", what], ["much", much]].map(([name, text]) => {
      const cell = document.createElement("span")
      cell.className = name
      cell.textContent = text
      return cell
    })))
  }
  model.on("rows", paint)
  model.on("dark", paint)
  paint()
  return root
}
