// The patch table: interventions in order, each with its switch, name, effect and a way out. Text is only set as text.

const CSS = `
.root { container-type: inline-size; font: 12px/16px var(--sans); color: var(--ink); font-variant-numeric: tabular-nums; }
.row { display: grid; grid-template-columns: 28px 16px 1fr auto 24px; column-gap: 8px; align-items: center; padding: 4px 0;
  border-top: 1px solid var(--line); }
.row:first-child { border-top: 0; }
.off .words, .off .effect { opacity: .45; }
button { all: unset; cursor: pointer; border-radius: 4px; }
button:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.switch { width: 26px; height: 14px; border-radius: 8px; background: var(--line); position: relative; transition: background .12s; }
.switch::after { content: ""; position: absolute; top: 2px; left: 2px; width: 10px; height: 10px; border-radius: 50%;
  background: var(--muted); transition: left .12s; }
.switch[aria-checked=true] { background: color-mix(in srgb, var(--accent) 45%, var(--paper)); }
.switch[aria-checked=true]::after { left: 14px; background: var(--accent); }
.state { width: 14px; height: 14px; border-radius: 3px; }
.site { font: 600 12px/16px var(--mono); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.what { color: var(--muted); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.words { min-width: 0; }
.name { all: unset; box-sizing: border-box; width: 100%; color: var(--muted); font: 12px/16px var(--sans); border-radius: 4px; cursor: text; }
.name::placeholder { color: var(--muted); opacity: 0; }
.row:hover .name::placeholder, .name:focus::placeholder { opacity: .7; }
.name:hover { color: var(--ink); }
.effect { text-align: right; white-space: nowrap; font-weight: 600; }
.strength { grid-column: 3 / 5; display: block; width: 100%; height: 16px; margin: 0; accent-color: var(--steered); }
.remove { width: 22px; height: 22px; text-align: center; line-height: 22px; font-size: 14px; color: var(--muted); }
.remove:hover { color: var(--error); background: color-mix(in srgb, var(--error) 12%, transparent); }
.empty { color: var(--muted); padding: 4px 0; }
`

export function render({model}) {
  const root = document.createElement("div")
  root.className = "root"
  const style = document.createElement("style")
  style.textContent = CSS
  const list = document.createElement("div")
  root.append(style, list)
  root.setAttribute("role", "list")
  root.setAttribute("aria-label", "Interventions")

  function make(parent, tag, name, text) {
    const made = document.createElement(tag)
    made.className = name
    if (text !== undefined) made.textContent = text
    parent.append(made)
    return made
  }

  function line(row, at) {
    const made = document.createElement("div")
    made.className = row.enabled ? "row" : "row off"
    made.setAttribute("role", "listitem")
    const toggle = make(made, "button", "switch")
    toggle.type = "button"
    toggle.setAttribute("role", "switch")
    toggle.setAttribute("aria-checked", String(row.enabled))
    toggle.title = row.enabled ? "Switch off" : "Switch on"
    toggle.setAttribute("aria-label", `${toggle.title}: ${row.site}`)
    toggle.addEventListener("click", () => model.send_msg({do: "toggle", at}))
    const state = make(made, "span", "state")
    state.style.background = `var(--${row.state})`
    state.title = row.state
    const words = make(made, "div", "words")
    words.title = `${row.verb} ${row.site} ${row.what}`
    make(words, "div", "site", row.site)
    make(words, "div", "what", `${row.verb}: ${row.what}`)
    const name = make(words, "input", "name")
    name.value = row.name
    name.placeholder = "name it"
    name.setAttribute("aria-label", `Name of ${row.site}`)
    name.maxLength = 80
    name.addEventListener("change", () => model.send_msg({do: "rename", at, name: name.value}))
    const effect = make(made, "span", "effect", row.effect)
    effect.title = row.hint
    const remove = make(made, "button", "remove", "✕")
    remove.type = "button"
    remove.title = "Delete"
    remove.setAttribute("aria-label", `Delete ${row.site}`)
    remove.addEventListener("click", () => model.send_msg({do: "remove", at}))
    if (row.reach) made.append(slider(row, at))
    return made
  }

  function slider(row, at) {
    const made = document.createElement("input")
    made.type = "range"
    made.className = "strength"
    made.min = -2 * row.reach
    made.max = 2 * row.reach
    made.step = row.reach / 50
    made.value = row.strength
    const says = row.neutral ? `Factor: ${row.neutral} changes nothing`
      : `Strength: at ±${Number(row.reach.toPrecision(3))} what is added is as long as what the site holds`
    made.title = `${says}. Double click for ${row.neutral || "zero"}.`
    made.setAttribute("aria-label", `Strength of ${row.site}`)
    let sent = 0, waiting = null
    const send = () => {
      sent = Date.now(); waiting = null
      const value = Number(made.value)
      made.expected = value === model.rows[at]?.strength ? undefined : value // what is no change is not answered
      model.send_msg({do: "strength", at, value})
    }
    made.addEventListener("input", () => {
      made.expected = Number(made.value)
      waiting ??= setTimeout(send, Math.max(0, 60 - (Date.now() - sent)))
    })
    made.addEventListener("dblclick", () => { made.value = row.neutral; send() })
    return made
  }

  // What a moving slider changes; the slider itself must stay where it is.
  const frame = (rows) => JSON.stringify(rows.map(({site, verb, name, enabled, reach}) => [site, verb, name, enabled, reach]))
  let framed = ""

  function refresh() {
    if (frame(model.rows) !== framed || !model.rows.length) return paint()
    model.rows.forEach((row, at) => {
      const made = list.children[at]
      made.querySelector(".words").title = `${row.verb} ${row.site} ${row.what}`
      made.querySelector(".what").textContent = `${row.verb}: ${row.what}`
      made.querySelector(".effect").textContent = row.effect
      made.querySelector(".effect").title = row.hint
      const strength = made.querySelector(".strength")
      if (!strength) return
      // The answer to what was set a moment ago must not take back what has been set since.
      if (strength.expected === row.strength) strength.expected = undefined
      if (strength.expected === undefined && !strength.matches(":active")) strength.value = row.strength
    })
  }

  function paint() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    root.style.setProperty("--mono", look.mono)
    framed = frame(model.rows)
    list.replaceChildren(...model.rows.map(line))
    if (!model.rows.length)
      make(list, "div", "empty", "Nothing is changed yet. Select a head and ablate, freeze or patch it, or steer: the loss answers.")
  }

  model.on("rows", refresh)
  model.on("dark", paint)
  paint()
  return root
}
