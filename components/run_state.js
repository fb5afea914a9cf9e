// The line at the top: which model, how healthy, what is being done, and undo and redo.

const CSS = `
.root { contain: inline-size; display: flex; align-items: center; gap: 16px; font: 13px/20px var(--sans); color: var(--ink);
  font-variant-numeric: tabular-nums; min-width: 0; }
button { all: unset; cursor: pointer; border-radius: 4px; }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
button[disabled] { cursor: default; opacity: .35; }
.model { display: flex; align-items: center; gap: 8px; padding: 4px 12px; box-shadow: inset 0 0 0 1px var(--line); min-width: 0; }
.model:hover { box-shadow: inset 0 0 0 1px var(--accent); }
.name { font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: 280px; }
.caret { color: var(--muted); font-size: 10px; }
.badge { display: inline-flex; align-items: center; gap: 6px; color: var(--muted); white-space: nowrap; }
.dot { width: 8px; height: 8px; border-radius: 50%; background: var(--muted); }
.healthy .dot { background: #2e9e5b; }
.limited .dot { background: var(--patched); border-radius: 1px; }
.broken .dot { background: var(--error); clip-path: polygon(50% 0, 100% 100%, 0 100%); border-radius: 0; }
.state { display: flex; align-items: center; gap: 12px; flex: 1 1 0; min-width: 0; color: var(--muted); }
.says { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.meter { width: 96px; height: 4px; border-radius: 2px; background: var(--line); overflow: hidden; flex: none; }
.fill { height: 100%; background: var(--accent); width: 0; transition: width .1s linear; }
.meter.unknown .fill { width: 40%; animation: slide 1.2s ease-in-out infinite alternate; }
@keyframes slide { from { margin-left: 0 } to { margin-left: 60% } }
@media (prefers-reduced-motion: reduce) { .meter.unknown .fill { animation: none } }
.cancel { color: var(--accent); padding: 2px 8px; }
.cancel:hover, .step:hover:not([disabled]) { background: color-mix(in srgb, var(--accent) 12%, transparent); }
.memory { color: var(--muted); white-space: nowrap; flex: none; }
.steps { display: flex; gap: 4px; flex: none; }
.step { padding: 4px 8px; white-space: nowrap; }
[hidden] { display: none !important; }
`

export function render({model}) {
  const style = document.createElement("style")
  style.textContent = CSS
  const root = document.createElement("div")
  root.className = "root"

  function make(parent, tag, name, text) {
    const made = document.createElement(tag)
    made.className = name
    if (text !== undefined) made.textContent = text
    if (tag === "button") made.type = "button"
    parent.append(made)
    return made
  }

  const choose = make(root, "button", "model")
  choose.setAttribute("aria-haspopup", "dialog")
  const name = make(choose, "span", "name")
  const badge = make(choose, "span", "badge")
  make(badge, "span", "dot")
  const health = make(badge, "span", "health")
  make(choose, "span", "caret", "▼")
  const state = make(root, "div", "state")
  state.setAttribute("role", "status")
  const says = make(state, "span", "says")
  const meter = make(state, "span", "meter")
  const fill = make(meter, "span", "fill")
  fill.style.display = "block"
  const cancel = make(state, "button", "cancel", "Cancel")
  const memory = make(root, "span", "memory")
  const steps = make(root, "div", "steps")
  const undo = make(steps, "button", "step", "↶ Undo")
  const redo = make(steps, "button", "step", "↷ Redo")
  undo.title = "Take back the last change of interventions (Ctrl+Z)"
  redo.title = "Make it again (Ctrl+Shift+Z)"
  choose.addEventListener("click", () => model.send_msg({do: "choose"}))
  cancel.addEventListener("click", () => model.send_msg({do: "cancel"}))
  undo.addEventListener("click", () => model.send_msg({do: "undo"}))
  redo.addEventListener("click", () => model.send_msg({do: "redo"}))

  // Keys belong to a text field while one has the focus, also inside a shadow root.
  function key(event) {
    const at = event.composedPath()[0]
    if (at instanceof HTMLElement && (at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName))) return
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return
    const pressed = event.key.toLowerCase()
    if (pressed === "z") model.send_msg({do: event.shiftKey ? "redo" : "undo"})
    else if (pressed === "y") model.send_msg({do: "redo"})
    else return
    event.preventDefault()
  }
  document.addEventListener("keydown", key)
  model.on("remove", () => document.removeEventListener("keydown", key))

  function paint() {
    const look = model.esm_constants
    for (const [token, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${token}`, colour)
    root.style.setProperty("--sans", look.sans)
    name.textContent = model.name_of_model
    choose.title = model.hint
    badge.className = `badge ${model.health}`
    badge.hidden = !model.health
    health.textContent = model.health
    says.textContent = model.says
    state.title = model.says
    memory.textContent = model.memory
    memory.title = model.memory_hint
    cancel.hidden = !model.busy
    meter.hidden = !model.busy
    meter.classList.toggle("unknown", model.fraction < 0)
    fill.style.width = model.fraction < 0 ? "" : `${100 * model.fraction}%`
    undo.disabled = !model.can_undo
    redo.disabled = !model.can_redo
  }
  for (const part of ["name_of_model", "health", "hint", "says", "memory", "memory_hint", "busy", "fraction", "can_undo", "can_redo", "dark"]) model.on(part, paint)
  paint()
  const both = document.createElement("div")
  both.style.width = "100%"
  both.append(style, root)
  return both
}
