// Notes on parts of the model: a click goes to the part. Text is only ever set as text.

const CSS = `
.root { font: 12px/16px var(--sans); color: var(--ink); }
.row { display: grid; grid-template-columns: max-content 1fr 24px; column-gap: 12px; align-items: baseline; padding: 3px 0; border-top: 1px solid var(--line); }
button { all: unset; cursor: pointer; border-radius: 4px; }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.id { font: 600 12px/16px var(--mono); color: var(--accent); }
.id:hover { text-decoration: underline; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.remove { width: 22px; text-align: center; color: var(--muted); }
.remove:hover { color: var(--error); }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const list = document.createElement("div")
  style.textContent = CSS
  list.className = "root"
  list.setAttribute("role", "list")
  list.setAttribute("aria-label", "Notes")
  root.append(style, list)

  function make(parent, tag, name, text) {
    const made = document.createElement(tag)
    made.className = name
    made.textContent = text
    parent.append(made)
    return made
  }

  function paint() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) list.style.setProperty(`--${name}`, colour)
    list.style.setProperty("--sans", look.sans)
    list.style.setProperty("--mono", look.mono)
    list.replaceChildren(...model.rows.map((row) => {
      const line = document.createElement("div")
      line.className = "row"
      line.setAttribute("role", "listitem")
      make(line, "button", "id", row.id).addEventListener("click", () => model.send_msg({go: row.id}))
      make(line, "span", "text", row.text)
      const remove = make(line, "button", "remove", "✕")
      remove.title = "Delete"
      remove.setAttribute("aria-label", `Delete the note on ${row.id}`)
      remove.addEventListener("click", () => model.send_msg({remove: row.id}))
      return line
    }))
  }

  model.on("rows", paint)
  model.on("dark", paint)
  paint()
  return root
}
