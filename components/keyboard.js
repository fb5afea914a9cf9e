// Keys that act on the whole page, unless they are being typed into something. Takes no room.

const ARROWS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"])
const TYPING = "input, textarea, select, [contenteditable], [role=slider], [role=menu], [role=listbox], [role=dialog]"

export function render({model}) {
  const root = document.createElement("div")

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return
    const path = event.composedPath()
    if (path.some((each) => each instanceof Element && each.matches(TYPING))) return
    // In a notebook, the page's other keys are not ours.
    const host = root.getRootNode().host
    if (!model.everywhere && !path.includes(host && host.parentNode)) return
    const arrow = ARROWS.has(event.key)
    // A focused widget that arrows move keeps them.
    if (arrow ? !model.arrows || path[0] !== document.body : !model.keys.includes(event.key)) return
    event.preventDefault()
    model.send_msg({key: event.key})
  }

  document.addEventListener("keydown", key)
  model.on("remove", () => document.removeEventListener("keydown", key))
  return root
}
