// A line of text that is only ever text, in one of four tones.

const CSS = `
.root { font: 12px/16px var(--sans); color: var(--muted); font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.error, .warning { padding: 8px 12px; border-radius: 4px; font-size: 13px; line-height: 20px; color: var(--ink); }
.error { background: color-mix(in srgb, var(--error) 12%, var(--paper)); border-left: 3px solid var(--error); }
.warning { background: color-mix(in srgb, var(--patched) 12%, var(--paper)); border-left: 3px solid var(--patched); }
.heading { color: var(--ink); font-size: 13px; line-height: 20px; font-weight: 600; }
.big { color: var(--ink); font-size: 20px; line-height: 24px; font-weight: 600; }
`

export function render({model}) {
  const root = document.createElement("div")
  const style = document.createElement("style")
  const line = document.createElement("div")
  style.textContent = CSS
  root.append(style, line)
  function paint() {
    const look = model.esm_constants
    for (const [name, colour] of Object.entries(look[model.dark ? "dark" : "light"])) root.style.setProperty(`--${name}`, colour)
    root.style.setProperty("--sans", look.sans)
    line.textContent = model.text
    line.className = `root ${model.tone}`
    line.hidden = !model.text
    line.title = model.hint
    if (model.tone === "error") line.setAttribute("role", "alert")
    else line.setAttribute("role", "status")
  }
  for (const name of ["text", "tone", "dark", "hint"]) model.on(name, paint)
  paint()
  return root
}
