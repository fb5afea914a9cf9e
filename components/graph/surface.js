// What the flow library does not tell: clicks on titles, double and right clicks, drops that were refused, keys, its size;
// the menu that a right click opens, and the style that changes with every run, which the library would have to make
// every node anew for. It listens on the element that it shares with the diagram.

const CSS = `
.menu { position: fixed; z-index: 2000; display: grid; min-width: 148px; padding: 4px; border-radius: 6px; font: 13px/20px var(--sans);
  color: var(--ink); background: var(--surface); border: 1px solid var(--line); box-shadow: 0 4px 16px rgba(0, 0, 0, .18); }
.menu:empty { display: none; }
button { all: unset; display: flex; gap: 10px; align-items: center; padding: 4px 10px 4px 8px; border-radius: 4px; cursor: pointer; }
button:hover, button:focus-visible { background: color-mix(in srgb, var(--accent) 14%, transparent); }
.icon { font: 18px/20px "Material Icons"; font-feature-settings: "liga"; width: 20px; color: var(--muted); }
`

const KEYS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"])

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  style.textContent = CSS
  const list = document.createElement("div")
  list.className = "menu"
  list.setAttribute("role", "menu")
  root.append(style, list)
  // In the diagram's own root:
  const pictures = document.createElement("style")
  const marks = document.createElement("style")
  let shared = null

  const path = (event) => event.composedPath().filter((each) => each instanceof Element)
  const within = (event, name) => path(event).find((each) => each.classList.contains(name))
  const node = (event) => within(event, "react-flow__node")
  const tell = (what, more) => model.send_msg({what, ...more})

  function click(event) {
    const at = node(event)
    const title = within(event, "rf-node-label")
    if (at && title && /react-flow__node-(card|layer)/.test(at.className)) {
      event.stopPropagation()
      tell("toggle", {id: at.dataset.id})
    } else if (at) {
      tell("pick", {ids: [at.dataset.id], more: event.shiftKey})
    }
  }

  // The library's own selection is not ours: it can't be told of one that is made elsewhere without telling it back.
  function mark() {
    const look = model.esm_constants[model.dark ? "dark" : "light"]
    const picked = model.picked.map((id) => `.react-flow__node[data-id="${window.CSS.escape(id)}"]`).join(", ")
    marks.textContent = picked && `${picked} { box-shadow: 0 0 0 2px ${look.accent} !important; }`
  }

  function paint() {
    pictures.textContent = model.css
  }

  function twice(event) {
    const at = node(event)
    if (!at) return
    event.stopPropagation()
    tell("toggle", {id: at.dataset.id})
  }

  function menu(event) {
    const at = node(event)
    if (!within(event, "react-flow")) return
    event.preventDefault()
    if (at) tell("menu", {id: at.dataset.id, x: event.clientX, y: event.clientY})
  }

  function showMenu() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    list.replaceChildren(...model.menu.map(({label, icon}) => {
      const item = document.createElement("button")
      const sign = document.createElement("span")
      sign.className = "icon"
      sign.textContent = icon
      sign.setAttribute("aria-hidden", "true")
      item.type = "button"
      item.setAttribute("role", "menuitem")
      item.append(sign, label)
      item.addEventListener("click", () => { close(); tell("chosen", {label}) })
      return item
    }))
    const {width, height} = list.getBoundingClientRect()
    list.style.left = `${Math.max(4, Math.min(model.at[0], innerWidth - width - 4))}px`
    list.style.top = `${Math.max(4, Math.min(model.at[1], innerHeight - height - 4))}px`
    list.querySelector("button")?.focus()
  }

  function close() {
    list.replaceChildren()
  }

  function outside(event) {
    if (list.firstChild && !event.composedPath().includes(list)) close()
  }

  list.addEventListener("keydown", (event) => {
    const items = [...list.children]
    const step = {ArrowDown: 1, ArrowUp: items.length - 1}[event.key]
    if (event.key === "Escape") close()
    if (step) items[(items.indexOf(root.getRootNode().activeElement) + step) % items.length].focus()
    if (step || event.key === "Escape") event.preventDefault()
    event.stopPropagation()
  })

  function up(event) {
    const flow = within(event, "react-flow")
    if (flow && flow.querySelector(".react-flow__selection")) {
      setTimeout(() => tell("pick", {ids: [...flow.querySelectorAll(".react-flow__node.selected")].map((each) => each.dataset.id)}))
    }
    drop(event)
  }

  function drop(event) {
    if (!within(event, "react-flow__handle")) return
    // What the server says of a target comes a moment after the line has begun: have a line that was drawn quickly
    // looked at once more before it ends.
    const {clientX, clientY} = event
    path(event)[0].dispatchEvent(new MouseEvent("mousemove", {clientX, clientY, bubbles: true, composed: true}))
    const handle = within(event, "rf-handle-invalid")
    if (handle && handle.getAttribute("aria-label")) tell("refused", {why: handle.getAttribute("aria-label")})
  }

  // The library moves a selected node by the arrow keys; here they go from head to head.
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !within(event, "react-flow")) return
    const at = node(event)
    const picks = at && (event.key === "Enter" || event.key === " ")
    if (!picks && !KEYS.has(event.key)) return
    event.preventDefault()
    event.stopPropagation()
    if (picks) tell("pick", {ids: [at.dataset.id], more: event.shiftKey})
    else tell("arrow", {key: event.key})
  }

  const watched = [["click", click], ["dblclick", twice], ["contextmenu", menu], ["mouseup", up], ["keydown", key]]
  const sizes = new ResizeObserver(([entry]) => {
    const {width, height} = entry.contentRect
    if (width && height) tell("size", {width, height})
  })

  function attach() {
    const host = root.getRootNode().host
    if (!host || !host.parentNode || shared === host.parentNode) return
    detach()
    shared = host.parentNode
    for (const [name, listener] of watched) shared.addEventListener(name, listener, true)
    const diagram = host.previousElementSibling
    diagram.shadowRoot.append(pictures, marks)
    paint()
    mark()
    sizes.observe(diagram)
  }

  function detach() {
    if (!shared) return
    for (const [name, listener] of watched) shared.removeEventListener(name, listener, true)
    sizes.disconnect()
    shared = null
  }

  document.addEventListener("mousedown", outside, true)
  model.on("menu", showMenu)
  model.on("css", paint)
  model.on("picked", mark)
  model.on("dark", mark)
  model.on("after_layout", attach)
  model.on("remove", () => { detach(); document.removeEventListener("mousedown", outside, true) })
  requestAnimationFrame(attach)
  return root
}
