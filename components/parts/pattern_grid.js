// A grid to draw an attention pattern on. What lies after its query can't be attended to, and is hatched.

const CELL = 14 // px

const CSS = `
.grid { display: grid; width: max-content; border: 1px solid var(--line); border-radius: 4px; overflow: hidden; touch-action: none;
  user-select: none; outline: none; }
.grid:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.cell { box-shadow: inset 0 0 0 .5px var(--line); cursor: crosshair; }
.cell:hover { box-shadow: inset 0 0 0 1.5px var(--accent); }
.cell.on { background: var(--accent); }
.cell.at { outline: 2px solid var(--muted); outline-offset: -2px; }
.grid:not(:focus-visible) .cell.at { outline: none; }
.cell.off { cursor: default; box-shadow: none; background: repeating-linear-gradient(45deg, transparent 0 4px, var(--line) 4px 5px); }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const grid = document.createElement("div")
  style.textContent = CSS
  grid.className = "grid"
  grid.tabIndex = 0
  grid.setAttribute("role", "application")
  grid.setAttribute("aria-label", "Pattern to look for: arrow keys move, Space draws")
  root.append(style, grid)
  let on = new Set()
  let painting = null // whether the hand draws or wipes, while it is down
  let at = [1, 0]

  const name = (query, key) => `${query},${key}`
  const cellOf = (target) => target?.closest?.(".cell:not(.off)")

  function lay() {
    const look = model.esm_constants
    for (const [what, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${what}`, colour)
    grid.style.gridTemplate = `repeat(${model.side}, ${CELL}px) / repeat(${model.side}, ${CELL}px)`
    grid.replaceChildren()
    for (let query = 0; query < model.side; query++) for (let key = 0; key < model.side; key++) {
      const cell = document.createElement("div")
      cell.className = key > query ? "cell off" : "cell"
      cell.dataset.name = name(query, key)
      if (key <= query) cell.title = `query part ${query}, key part ${key}`
      grid.append(cell)
    }
    take()
  }

  function take() {
    on = new Set(model.cells.map(([query, key]) => name(query, key)))
    show()
  }

  function show() {
    for (const cell of grid.children) {
      cell.classList.toggle("on", on.has(cell.dataset.name))
      cell.classList.toggle("at", cell.dataset.name === name(...at))
    }
  }

  function set(cell, wanted) {
    if (wanted) on.add(cell.dataset.name)
    else on.delete(cell.dataset.name)
    show()
  }

  const tell = () => model.send_msg({cells: [...on].map((each) => each.split(",").map(Number))})

  grid.addEventListener("pointerdown", (event) => {
    const cell = cellOf(event.target)
    if (!cell) return
    painting = !on.has(cell.dataset.name)
    set(cell, painting)
    at = cell.dataset.name.split(",").map(Number)
  })
  grid.addEventListener("pointermove", (event) => {
    if (painting === null) return
    const cell = cellOf(root.getRootNode().elementFromPoint(event.clientX, event.clientY))
    if (cell) set(cell, painting)
  })
  const rest = () => {
    if (painting === null) return
    painting = null
    tell()
  }
  window.addEventListener("pointerup", rest)
  model.on("remove", () => window.removeEventListener("pointerup", rest))

  grid.addEventListener("keydown", (event) => {
    const [query, key] = at
    const moves = {ArrowUp: [query - 1, key], ArrowDown: [query + 1, key], ArrowLeft: [query, key - 1], ArrowRight: [query, key + 1]}
    if (event.key in moves) {
      const [down, right] = moves[event.key]
      if (0 <= right && right <= down && down < model.side) at = [down, right]
      show()
    } else if (event.key === " " || event.key === "Enter") {
      set(grid.querySelector(`[data-name="${name(...at)}"]`), !on.has(name(...at)))
      tell()
    } else return
    event.preventDefault()
    event.stopPropagation() // the page's own arrow keys go from head to head
  })

  lay()
  for (const each of ["side", "dark"]) model.on(each, lay)
  model.on("cells", take)
  return root
}
