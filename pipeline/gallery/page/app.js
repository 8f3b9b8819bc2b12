// The beginning, the controls at the top, and the keys.

const help = document.getElementById("help")
const HELP = [["← ↑ → ↓", "go through the images"], ["j  k", "next, previous image"], ["Home  End", "first, last image"], ["Enter", "open the image"], ["Esc", "close it"],
  ["m", "masks on or off"], ["b", "boxes on or off"], ["t", "outlines of the truth on or off"], ["1 – 9", "show a class alone, or with the others chosen"],
  ["c", "colour by another column"], ["s", "sort by another order"], ["+  −  0", "zoom in, zoom out, fit (or size of the images in the grid)"], ["/", "search in keys"], ["x", "clear all filters"],
  ["f", "show or hide the filters"], ["d", "dark or light"], ["?", "this help"]]

let addressTimer
function keepAddress() {
  clearTimeout(addressTimer)                             // browsers refuse many changes a second
  addressTimer = setTimeout(() => {
    const hash = `#${toHash()}`
    if (hash !== (location.hash || "#")) history.replaceState(null, "", hash)
  }, 120)
}

// After any change of filters or order.
function changed() {
  select()
  scroller.scrollTop = 0
  grid.current = 0
  refresh(true)
}

// After any change of drawing.
function refresh(anew = false) {
  showState()
  showNothing()
  renderGrid(anew)
  if (view.image) showView()
  keepAddress()
}

function showNothing() {
  const place = document.getElementById("nothing")
  place.hidden = selected.order.length > 0
  if (place.hidden) return
  const clear = element("button", { type: "button", textContent: "Clear all filters" })
  clear.addEventListener("click", clearFilters)
  place.replaceChildren(element("b", { textContent: "No image passes these filters" }), element("span", {}, clear))
}

function flipSwitch(name) {
  if (name === "truth" && !columns.has("true_iou")) return
  state[name] = !state[name]
  refresh()
}

function nextOption(id) {
  const choice = document.getElementById(id)
  choice.selectedIndex = (choice.selectedIndex + 1) % choice.options.length
  choice.dispatchEvent(new Event("change"))
}

function resize(size) {
  state.size = Math.min(520, Math.max(140, size))
  const keep = Math.floor(scroller.scrollTop / Math.max(1, grid.cellHeight)) * grid.columns
  refresh(true)
  scroller.scrollTop = Math.floor(keep / grid.columns) * grid.cellHeight
  fillGrid()
}

function togglePanel() {
  panel.hidden = !panel.hidden
  document.getElementById("toggle-panel").setAttribute("aria-expanded", String(!panel.hidden))
}

function toggleTheme() {
  state.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark"
  refresh()
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !images.length) return
  const field = event.target.closest?.("input, select, textarea")
  if (field && field.type !== "checkbox") {
    if (event.key === "Escape" && !viewer.open) { field.blur(); focusCell(grid.current) }
    return
  }
  if (help.open) {
    if (event.key === "?") { help.close(); event.preventDefault() }
    return
  }
  const key = event.key, done = keyOf(key) ?? (viewer.open ? viewerKey(key, event) : gridKey(key, event))
  if (done) event.preventDefault()
})

// Each returns whether the key meant something.
function keyOf(key) {
  const actions = {
    m: () => flipSwitch("masks"), b: () => flipSwitch("boxes"), t: () => flipSwitch("truth"), d: toggleTheme, c: () => nextOption("color"),
    "?": () => help.showModal(),
  }
  if (key >= "1" && key <= "9" && key.length === 1) {
    const one = classOrder()[Number(key) - 1]
    if (!one) return false
    flip(state.classes, one.place)
    changed()
    return true
  }
  if (!Object.hasOwn(actions, key)) return undefined
  actions[key]()
  return true
}

function viewerKey(key, event) {
  if (side.contains(event.target) && ["ArrowUp", "ArrowDown"].includes(key)) return false
  const actions = {
    ArrowRight: () => step(1), ArrowDown: () => step(1), j: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1), k: () => step(-1),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  }
  if (!Object.hasOwn(actions, key)) return false
  actions[key]()
  return true
}

function gridKey(key, event) {
  if (panel.contains(event.target) && /^Arrow|^Home$|^End$/.test(key)) return false
  const page = Math.max(1, Math.floor(scroller.clientHeight / grid.cellHeight)) * grid.columns
  const inGrid = scroller.contains(event.target) || event.target === document.body
  const by = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1, ArrowDown: grid.columns, ArrowUp: -grid.columns, PageDown: page, PageUp: -page }
  if (Object.hasOwn(by, key)) {
    if (!inGrid && !["j", "k"].includes(key)) return false
    const focused = sheet.contains(document.activeElement)
    const to = focused ? grid.current + by[key] : grid.current
    if (to >= 0 && to < selected.order.length || /^Page/.test(key)) focusCell(to)
    return true
  }
  const actions = {
    Home: () => focusCell(0), End: () => focusCell(selected.order.length - 1), "/": () => { panel.hidden = false; document.getElementById("search").focus() },
    x: clearFilters, f: togglePanel, s: () => nextOption("sort"), "+": () => resize(state.size + 40), "=": () => resize(state.size + 40),
    "-": () => resize(state.size - 40), 0: () => resize(240),
  }
  if (!Object.hasOwn(actions, key)) return false
  actions[key]()
  return true
}

function fillChoice(id, options, change) {
  const choice = document.getElementById(id)
  choice.replaceChildren(...options.map(([value, textContent]) => element("option", { value, textContent })))
  choice.addEventListener("change", () => change(choice.value))
}

function readAddress() {
  fromHash(location.hash)
  select()
  refresh(true)
  if (state.open) openImage(state.open)
  else if (viewer.open) closeImage()
}

async function begin() {
  document.getElementById("run").textContent = START.about.run
  document.getElementById("counts").textContent = "Loading …"
  try {
    await loadTables()
  } catch (error) {
    const place = document.getElementById("nothing")
    place.hidden = false
    place.replaceChildren(element("b", { textContent: "The data of this gallery could not be loaded" }),
      element("span", { textContent: `${START.folder}/${error.message} is missing. The folder ${START.folder} belongs beside this page.` }))
    document.getElementById("counts").textContent = ""
    return
  }
  findTags()
  if (!columns.has("true_iou")) for (const button of document.querySelectorAll('[data-switch="truth"]')) button.hidden = true
  fillChoice("sort", orders(), (value) => { state.sort = value; changed() })
  fillChoice("color", colorings(), (value) => { state.color = value; refresh() })
  document.getElementById("size").addEventListener("input", (event) => resize(Number(event.target.value)))
  for (const button of document.querySelectorAll("[data-switch]")) button.addEventListener("click", () => flipSwitch(button.dataset.switch))
  document.getElementById("toggle-panel").addEventListener("click", togglePanel)
  document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); focusCell(grid.current) })
  document.getElementById("theme").addEventListener("click", toggleTheme)
  document.getElementById("help-button").addEventListener("click", () => help.showModal())
  document.getElementById("help-close").addEventListener("click", () => help.close())
  for (const [keys, text] of HELP) {
    const dt = element("dt")
    keys.split("  ").forEach((key) => dt.append(element("kbd", { textContent: key }), " "))
    document.getElementById("keys").append(dt, element("dd", { textContent: text }))
  }
  if (window.innerWidth <= 900) togglePanel()
  Object.assign(state, beginning())
  buildPanel()
  showWhat()
  readAddress()
  addEventListener("hashchange", readAddress)
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh())
  document.documentElement.dataset.ready = "true"
}

begin()
