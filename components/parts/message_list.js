// A chat, message by message, each to be edited in place. Text is only ever set as text.

const CSS = `
.root { font: 12px/16px var(--sans); color: var(--ink); display: flex; flex-direction: column; gap: 8px; }
.message { border-left: 3px solid var(--line); padding-left: 8px; }
.message.user { border-left-color: var(--accent); }
.message.assistant { border-left-color: var(--frozen); }
.head { display: flex; justify-content: space-between; align-items: center; height: 22px; }
select, textarea, button { font: inherit; color: inherit; }
select { background: transparent; border: 0; color: var(--muted); cursor: pointer; border-radius: 4px; }
select option { background: var(--surface); color: var(--ink); }
textarea { box-sizing: border-box; width: 100%; resize: none; overflow: hidden; border: 1px solid var(--line); border-radius: 4px;
  background: transparent; padding: 6px 8px; font: 13px/18px var(--sans); display: block; }
textarea:focus-visible, select:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: 0; }
button { all: unset; cursor: pointer; border-radius: 4px; color: var(--muted); }
.remove { width: 22px; height: 22px; text-align: center; line-height: 22px; }
.remove:hover { color: var(--error); }
.add { padding: 2px 8px; box-shadow: inset 0 0 0 1px var(--line); align-self: start; }
.add:hover { color: var(--ink); }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const list = document.createElement("div")
  style.textContent = CSS
  list.className = "root"
  list.setAttribute("role", "list")
  list.setAttribute("aria-label", "Messages")
  root.append(style, list)

  const grow = (area) => { area.style.height = "auto"; area.style.height = `${Math.max(32, area.scrollHeight + 2)}px` }

  function line(row, at) {
    const made = document.createElement("div")
    made.className = `message ${row.role}`
    made.setAttribute("role", "listitem")
    const head = document.createElement("div")
    head.className = "head"
    const role = document.createElement("select")
    role.setAttribute("aria-label", `Role of message ${at + 1}`)
    for (const name of model.roles) role.add(new Option(name, name, false, name === row.role))
    role.addEventListener("change", () => model.send_msg({do: "role", at, role: role.value}))
    const remove = document.createElement("button")
    remove.className = "remove"
    remove.textContent = "✕"
    remove.title = "Delete"
    remove.setAttribute("aria-label", `Delete message ${at + 1}`)
    remove.addEventListener("click", () => model.send_msg({do: "remove", at}))
    head.append(role, remove)
    const area = document.createElement("textarea")
    area.rows = 1
    area.value = row.content
    area.setAttribute("aria-label", `Message ${at + 1}, ${row.role}`)
    area.placeholder = row.role === "user" ? "What you say" : row.role === "system" ? "How it is to answer" : "How its answer begins"
    area.addEventListener("input", () => { grow(area); model.send_msg({do: "edit", at, content: area.value}) })
    made.append(head, area)
    requestAnimationFrame(() => grow(area))
    return made
  }

  const frame = (rows) => rows.map((row) => row.role).join(" ")
  let framed = null

  function paint() {
    framed = frame(model.rows)
    const add = document.createElement("button")
    add.className = "add"
    add.textContent = "Add a message"
    add.addEventListener("click", () => model.send_msg({do: "add"}))
    list.replaceChildren(...model.rows.map(line), add)
  }

  // While somebody types, the field stays: what comes back is what was sent.
  function refresh() {
    if (frame(model.rows) !== framed) return paint()
    list.querySelectorAll("textarea").forEach((area, at) => {
      if (!area.matches(":focus") && area.value !== model.rows[at].content) { area.value = model.rows[at].content; grow(area) }
    })
  }

  function dress() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
  }

  model.on("rows", refresh)
  model.on("dark", dress)
  dress()
  paint()
  return root
}
