// The filters at the side, and the chips that name the active ones.

const panel = document.getElementById("panel")
const BINS = 44

function buildPanel() {
  const search = element("input", { type: "search", id: "search", placeholder: "Search in keys  ( / )", value: state.words })
  search.setAttribute("aria-label", "Search in keys")
  search.addEventListener("input", () => { state.words = search.value; changed() })
  const sections = [element("div", { className: "group" }, search), tagGroup(), classGroup()]
  const flags = []
  for (const column of columns.values()) {
    if (column.min === column.max) continue
    if (column.flag) flags.push(flagRow(column))
    else sections.push(rangeGroup(column))
  }
  if (flags.length) sections.push(element("section", { className: "group" }, element("h2", { textContent: "Flags of masks" }), ...flags))
  sections.push(aboutGroup())
  panel.replaceChildren(...sections)
}

function checkRow(text, count, color, hint) {
  const box = element("input", { type: "checkbox" })
  const row = element("label", { className: count ? "row" : "row none" }, box,
    color ? element("span", { className: "dot" }) : null,
    element("span", { className: "text", textContent: text, title: text }),
    element("span", { className: "number", textContent: count.toLocaleString("en") }),
    hint ? element("kbd", { textContent: hint }) : null)
  if (color) row.querySelector(".dot").style.background = color
  return [row, box]
}

function tagGroup() {
  const rows = [...tagNames].map(([tag, { text, images: count }]) => {
    const [row, box] = checkRow(text, count)
    box.dataset.tag = tag
    box.addEventListener("change", () => { flip(state.tags, tag); changed() })
    return row
  })
  return group("Status", "images", element("div", { className: "rows" }, ...rows))
}

// The classes by how many masks they have; the first nine have a key.
function classOrder() {
  return CLASSES.filter((one) => one.masks).sort((a, b) => b.masks - a.masks || a.place - b.place)
}

function classGroup() {
  const rows = classOrder().map((one, rank) => {
    const [row, box] = checkRow(one.name, one.masks, hueColor(one.place), rank < 9 ? String(rank + 1) : "")
    box.dataset.class = one.place
    box.addEventListener("change", () => { flip(state.classes, one.place); changed() })
    return row
  })
  return group("Classes", "masks", element("div", { className: "rows" }, ...rows))
}

function group(name, unit, ...children) {
  return element("section", { className: "group" },
    element("h2", { textContent: name }, element("span", { textContent: unit })), ...children)
}

function flip(set, value) {
  if (!set.delete(value)) set.add(value)
}

// --- Ranges. A slider has 1000 steps along the column's scale.

const STEPS = 1000
function toStep(column, value) {
  const part = column.long ? (Math.log1p(value) - Math.log1p(column.min)) / (Math.log1p(column.max) - Math.log1p(column.min))
    : (value - column.min) / (column.max - column.min)
  return Math.round(STEPS * Math.min(1, Math.max(0, part)))
}

function fromStep(column, step) {
  if (step <= 0) return column.min
  if (step >= STEPS) return column.max
  const part = step / STEPS
  const value = column.long ? Math.expm1(Math.log1p(column.min) + part * (Math.log1p(column.max) - Math.log1p(column.min)))
    : column.min + part * (column.max - column.min)
  return column.whole ? Math.round(value) : Number(value.toPrecision(3))
}

function histogram(column) {
  const heights = new Float64Array(BINS)
  for (const value of column.values) {
    if (!Number.isNaN(value)) heights[Math.min(BINS - 1, Math.floor(toStep(column, value) / STEPS * BINS))]++
  }
  const most = Math.max(...heights), picture = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  picture.setAttribute("class", "histogram")
  picture.setAttribute("viewBox", `0 0 ${BINS} 34`)
  picture.setAttribute("preserveAspectRatio", "none")
  picture.setAttribute("aria-hidden", "true")
  heights.forEach((height, bin) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect")
    const size = height ? Math.max(1.5, 33 * Math.sqrt(height / most)) : 0
    for (const [name, value] of [["x", bin + 0.08], ["width", 0.84], ["y", 34 - size], ["height", size]]) bar.setAttribute(name, value)
    picture.append(bar)
  })
  return picture
}

function rangeGroup(column) {
  const name = title(column.name)
  const slider = (end) => {
    const found = element("input", { type: "range", min: 0, max: STEPS, step: 1 })
    found.setAttribute("aria-label", `${name}: ${end}`)
    return found
  }
  const field = (end) => {
    const found = element("input", { type: "number", step: "any" })
    found.setAttribute("aria-label", `${name}: ${end}`)
    return found
  }
  const low = slider("lowest"), high = slider("highest"), from = field("lowest"), to = field("highest")
  const take = (first, last) => {
    setRange(column.name, Math.min(first, last), Math.max(first, last))
    changed()
  }
  const now = () => state.ranges.get(column.name) ?? [column.min, column.max]
  low.addEventListener("input", () => take(Math.min(fromStep(column, Number(low.value)), now()[1]), now()[1]))
  high.addEventListener("input", () => take(now()[0], Math.max(fromStep(column, Number(high.value)), now()[0])))
  from.addEventListener("change", () => take(from.value === "" ? column.min : Number(from.value), now()[1]))
  to.addEventListener("change", () => take(now()[0], to.value === "" ? column.max : Number(to.value)))
  const found = group(name, column.known < M ? `known of ${column.known.toLocaleString("en")} masks` : "",
    histogram(column), element("div", { className: "slider" }, low, high),
    element("div", { className: "ends" }, from, element("span", { textContent: "to" }), to))
  found.dataset.column = column.name
  return found
}

function flagRow(column) {
  const choice = element("select", { dataset: { flag: column.name } },
    ...[["", "any"], ["1", "yes"], ["0", "no"]].map(([value, textContent]) => element("option", { value, textContent })))
  choice.setAttribute("aria-label", title(column.name))
  choice.addEventListener("change", () => {
    if (choice.value === "") state.ranges.delete(column.name)
    else state.ranges.set(column.name, [Number(choice.value), Number(choice.value)])
    changed()
  })
  return element("div", { className: "flag" }, element("span", { textContent: title(column.name) }), choice)
}

function aboutGroup() {
  const about = START.about, lines = [
    ["Run", about.run], ["At", about.uri], ["Begun", about.created], ["Labeler", about.labeler],
    ["Images", `${N.toLocaleString("en")} of ${about.images.toLocaleString("en")}`],
    ["Masks", `${M.toLocaleString("en")} of ${about.masks.toLocaleString("en")}`],
    ["Pictures", `at most ${about.longest} pixels a side; masks to match`],
    ["Version", about.version],
  ]
  if (N < about.images) lines.splice(5, 0, ["Choice", `${about.worst.toLocaleString("en")} worst images, and ${(N - about.worst).toLocaleString("en")} drawn evenly from the others`])
  if (about.missing) lines.push(["Not done", `${about.missing} of ${about.shards} shards, which are not shown`])
  if (about.minScore) lines.push(["View", `masks from score ${about.minScore}`])
  if (about.thresholds) lines.push(["View", "masks above the thresholds of their classes"])
  if (about.taxonomy) lines.push(["View", "classes renamed by a taxonomy"])
  if (about.truth) lines.push(["Truth", `${about.truth}; white outlines are objects found, pink ones are missed`])
  const list = element("dl")
  for (const [name, text] of lines) list.append(element("dt", { textContent: name }), element("dd", { textContent: text }))
  return element("details", { className: "group about" }, element("summary", { textContent: "About this gallery" }), list)
}

// Brings all controls to what the state says.
function showState() {
  const search = document.getElementById("search")
  if (document.activeElement !== search) search.value = state.words
  for (const box of panel.querySelectorAll("[data-tag]")) box.checked = state.tags.has(box.dataset.tag)
  for (const box of panel.querySelectorAll("[data-class]")) box.checked = state.classes.has(Number(box.dataset.class))
  for (const choice of panel.querySelectorAll("[data-flag]")) {
    const range = state.ranges.get(choice.dataset.flag)
    choice.value = range && range[0] === range[1] ? String(range[0]) : ""
  }
  for (const one of panel.querySelectorAll("[data-column]")) {
    const column = columns.get(one.dataset.column), [first, last] = state.ranges.get(column.name) ?? [column.min, column.max]
    const [low, high] = one.querySelectorAll("input[type=range]"), [from, to] = one.querySelectorAll("input[type=number]")
    const steps = [toStep(column, first), toStep(column, last)]
    low.value = steps[0]
    high.value = steps[1]
    low.style.zIndex = steps[0] > STEPS / 2 ? 1 : 0      // or two thumbs at the upper end could not be parted
    if (document.activeElement !== from) from.value = Number(first.toPrecision(4))
    if (document.activeElement !== to) to.value = Number(last.toPrecision(4))
    one.querySelectorAll("rect").forEach((bar, bin) => {
      bar.setAttribute("class", (bin + 0.5) / BINS * STEPS >= steps[0] && (bin + 0.5) / BINS * STEPS <= steps[1] ? "in" : "")
    })
  }
  document.getElementById("sort").value = state.sort
  document.getElementById("color").value = state.color
  document.getElementById("size").value = state.size
  for (const button of document.querySelectorAll("[data-switch]")) button.setAttribute("aria-pressed", state[button.dataset.switch])
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches
  document.documentElement.dataset.theme = dark ? "dark" : "light"
  showCounts()
  showLegend()
  showChips()
}

function showCounts() {
  const part = (some, all, noun) => [element("b", { textContent: some.toLocaleString("en") }), ` of ${counted(all, noun)}`]
  document.getElementById("counts").replaceChildren(
    ...part(selected.order.length, N, "image"), " · ", ...part(selected.masks, M, "mask"))
}

function showChips() {
  const chips = []
  const add = (text, remove) => {
    const chip = element("button", { type: "button", className: "chip", title: text }, element("span", { textContent: text }), "✕")
    chip.setAttribute("aria-label", `Remove the filter ${text}`)
    chip.addEventListener("click", () => { remove(); changed() })
    chips.push(chip)
  }
  if (state.words) add(`key: ${state.words}`, () => { state.words = "" })
  for (const tag of state.tags) add(tagText(tag), () => state.tags.delete(tag))
  for (const place of state.classes) add(CLASSES[place].name, () => state.classes.delete(place))
  for (const [name, [low, high]] of state.ranges) {
    const column = columns.get(name), text = title(name)
    const words = column.flag && low === high ? `${text}: ${low ? "yes" : "no"}`
      : high >= column.max ? `${text} ≥ ${number(low)}` : low <= column.min ? `${text} ≤ ${number(high)}` : `${text} ${number(low)} – ${number(high)}`
    add(words, () => state.ranges.delete(name))
  }
  if (chips.length > 1) {
    const all = element("button", { type: "button", className: "link", textContent: "Clear all" })
    all.addEventListener("click", clearFilters)
    chips.push(all)
  }
  document.getElementById("chips").replaceChildren(...chips)
}

function showLegend() {
  const legend = document.getElementById("legend"), column = columns.get(state.color)
  legend.hidden = !column
  if (!column) return
  const bar = element("i"), colors = [0, 0.25, 0.5, 0.75, 1].map(scaleColor)
  bar.style.background = `linear-gradient(90deg, ${colors.join(", ")})`
  legend.replaceChildren(`${title(column.name)}: worse`, bar, "better")
}

function showWhat() {
  const about = START.about
  document.getElementById("what").textContent = N < about.images ? `${N.toLocaleString("en")} of ${counted(about.images, "image")}: the ${about.worst.toLocaleString("en")} worst, and an even sample of the others.`
    : `All ${counted(N, "image")} of the run${about.missing ? `, as far as it is done (${about.shards - about.missing} of ${about.shards} shards)` : ""}.`
}

function clearFilters() {
  Object.assign(state, { words: "", tags: new Set(), classes: new Set(), ranges: new Map() })
  document.getElementById("search").value = ""
  changed()
}
