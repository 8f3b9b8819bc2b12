// What is asked for (filters, order, drawing), how it stands in the address of the page, and what it selects.

const SWITCHES = ["masks", "boxes", "truth"]
const state = {
  words: "", sort: "worst", tags: new Set(), classes: new Set(), ranges: new Map(),
  masks: true, boxes: false, truth: true, color: "class", size: 240, theme: "", open: null,
}

// What the state selects: images in order, and which masks of all are shown.
const selected = { order: [], masks: 0, shown: new Uint8Array(M), counts: new Uint32Array(N), value: new Float64Array(N) }

const tagNames = new Map()               // tag -> {text, images}

function findTags() {
  const add = (tag, text) => {
    if (!tagNames.has(tag)) tagNames.set(tag, { text, images: 0 })
    tagNames.get(tag).images++
  }
  const order = { labelled: 0, empty: 1, quarantined: 2 }
  for (const image of images) {
    image.tags = image.status === "quarantined" ? [`quarantined:${reasonOf(image)}`] : [image.status]
    if (image.corrected) image.tags.push("corrected")
    if (image.problem !== null) image.tags.push("gone")
    if (START.images < START.about.images) image.tags.push(image.worst ? "worst" : "sample")
    for (const tag of image.tags) add(tag, tagText(tag))
  }
  const rank = (tag) => order[tag.split(":")[0]] ?? 3
  const sorted = [...tagNames].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1))
  tagNames.clear()
  for (const [tag, found] of sorted) tagNames.set(tag, found)
}

function reasonOf(image) { return (image.error ?? "").split(":")[0] || "unknown" }

function tagText(tag) {
  const texts = { labelled: "Labelled", empty: "Empty", corrected: "Corrected by people", gone: "Picture not to be had",
    worst: "Among the worst of the run", sample: "From the even sample" }
  return texts[tag] ?? `Quarantined: ${tag.slice("quarantined:".length).replaceAll("_", " ")}`
}

// --- Orders. Each gives an image a number; the least comes first, and what has none comes last.

const worstColumn = () => (columns.has("predicted_iou") ? "predicted_iou" : "score")
const worst = (image) => extreme(image, columns.get(worstColumn()), false)

function orders() {
  const found = [
    ["worst", `Worst first (lowest ${title(worstColumn()).replace(/^[A-Z](?=[a-z])/, (first) => first.toLowerCase())})`, worst],
    ["uncertain", "Most uncertain", uncertainty()],
    ["most", "Most masks", (image) => -selected.counts[image.index]],
    ["fewest", "Fewest masks", (image) => selected.counts[image.index]],
  ]
  if (images.some((image) => image.change !== null)) {
    found.push(["change", "Largest change by people", (image) => (image.change === null ? NaN : -image.change)])
  }
  if (images.some((image) => image.truth)) found.push(["truth", "Furthest from the truth", agreement])
  found.push(["key", "Key", null], ["run", "Order of the run", (image) => image.index])
  for (const column of columns.values()) {
    if (column.flag) {
      found.push([`high:${column.name}`, `Most with ${title(column.name).toLowerCase()}`, (image) => -share(image, column)])
    } else {
      found.push([`low:${column.name}`, `${title(column.name)}, lowest`, (image) => extreme(image, column, false)])
      found.push([`high:${column.name}`, `${title(column.name)}, highest`, (image) => -extreme(image, column, true)])
    }
  }
  return found
}

// The least or greatest value of the masks shown.
function extreme(image, column, greatest) {
  let found = NaN
  for (let mask = image.first; mask < image.first + image.count; mask++) {
    const value = column.values[mask]
    if (!selected.shown[mask] || Number.isNaN(value)) continue
    if (Number.isNaN(found) || (greatest ? value > found : value < found)) found = value
  }
  return found
}

// The mean over the masks shown.
function share(image, column, of = (value) => value) {
  let sum = 0, count = 0
  for (let mask = image.first; mask < image.first + image.count; mask++) {
    const value = column.values[mask]
    if (!selected.shown[mask] || Number.isNaN(value)) continue
    sum += of(value)
    count++
  }
  return count ? sum / count : NaN
}

function uncertainty() {
  const column = columns.get("boundary_uncertainty")
  if (column) return (image) => -share(image, column)
  return (image) => share(image, columns.get("score"), (score) => Math.abs(2 * score - 1))
}

// Like panoptic quality: the IoU of the right masks, over these and half of the wrong masks and missed objects.
function agreement(image) {
  if (!image.truth) return NaN
  const { objects, ious } = matched(image)
  const all = (selected.counts[image.index] + objects) / 2
  return all ? ious / all : NaN
}

// Whether an object of the truth is of a class that is shown, and the IoU of the mask that found it, at 0.5 or more; 0 if
// it was missed. Of the filters for masks the lowest score counts: to look at some masks makes the others no misses.
function isAsked(image, object) { return !state.classes.size || state.classes.has(image.truth.classes[object]) }
function foundIou(image, object) {
  const mask = image.first + image.truth.partners[object]
  if (mask < image.first || columns.get("score").values[mask] < Math.fround(state.ranges.get("score")?.[0] ?? 0)) return 0
  const iou = columns.get("true_iou").values[mask]
  return iou >= 0.5 ? iou : 0
}

function matched(image) {
  let objects = 0, right = 0, ious = 0
  for (let object = 0; object < image.truth.partners.length; object++) {
    if (!isAsked(image, object)) continue
    const iou = foundIou(image, object)
    objects++
    right += iou > 0 ? 1 : 0
    ious += iou
  }
  return { objects, right, ious, missed: objects - right }
}

// --- Filters.

function isWhole(column, [low, high]) { return low <= column.min && high >= column.max }

function setRange(name, low, high) {
  const column = columns.get(name)
  if (isWhole(column, [low, high])) state.ranges.delete(name)
  else state.ranges.set(name, [low, high])
}

// Whether masks are left out by more than the score that the page begins with.
function isNarrowed() {
  if (state.classes.size) return true
  for (const [name, [low, high]] of state.ranges) {
    if (name !== "score" || low > START.about.startScore || high < columns.get(name).max) return true
  }
  return false
}

function select() {
  const { shown, counts } = selected
  shown.fill(1)
  if (state.classes.size) for (let mask = 0; mask < M; mask++) shown[mask] = state.classes.has(maskClass[mask]) ? 1 : 0
  for (const [name, [low, high]] of state.ranges) {
    const values = columns.get(name).values
    // Not "< low": what is not known is in no range. Values are of single precision, and so are their limits.
    const from = Math.fround(low), to = Math.fround(high)
    for (let mask = 0; mask < M; mask++) if (!(values[mask] >= from && values[mask] <= to)) shown[mask] = 0
  }
  counts.fill(0)
  for (let mask = 0; mask < M; mask++) counts[maskImage[mask]] += shown[mask]
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean), narrowed = isNarrowed()
  const found = images.filter((image) =>
    (!state.tags.size || image.tags.some((tag) => state.tags.has(tag))) &&
    words.every((word) => image.search.includes(word)) && (!narrowed || counts[image.index]))
  const [, , value] = orders().find(([name]) => name === state.sort) ?? orders()[0]
  if (value === null) {
    found.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : a.index - b.index))
  } else {
    for (const image of found) {
      const one = value(image)
      selected.value[image.index] = Number.isNaN(one) ? Infinity : one
    }
    found.sort((a, b) => {
      const x = selected.value[a.index], y = selected.value[b.index]
      return x < y ? -1 : x > y ? 1 : a.index - b.index
    })
  }
  selected.order = found
  selected.masks = found.reduce((sum, image) => sum + counts[image.index], 0)
}

// --- The address: only what differs from the beginning.

function beginning() {
  return {
    words: "", sort: "worst", tags: new Set(), classes: new Set(), masks: true, boxes: false, truth: true, size: 240, theme: "",
    ranges: new Map(START.about.startScore > 0 ? [["score", [START.about.startScore, 1]]] : []),
    color: CLASSES.filter((one) => one.masks).length > 1 ? "class" : "mask", open: null,
  }
}

function toHash() {
  const start = beginning(), found = new URLSearchParams()
  for (const name of ["sort", "color", "theme", "size"]) if (state[name] !== start[name]) found.set(name, state[name])
  for (const name of SWITCHES) if (state[name] !== start[name]) found.set(name, state[name] ? "1" : "0")
  if (state.words) found.set("q", state.words)
  for (const tag of state.tags) found.append("status", tag)
  for (const place of state.classes) found.append("class", CLASSES[place].id)
  for (const name of new Set([...start.ranges.keys(), ...state.ranges.keys()])) {
    const now = state.ranges.get(name), then = start.ranges.get(name)
    if (!now) found.append("range", `${name}~all`)
    else if (!then || now[0] !== then[0] || now[1] !== then[1]) found.append("range", `${name}~${now[0]}~${now[1]}`)
  }
  if (state.open !== null) found.set("open", state.open.id)
  return found.toString()
}

function fromHash(hash) {
  const found = new URLSearchParams(hash.replace(/^#/, ""))
  Object.assign(state, beginning())
  if (orders().some(([name]) => name === found.get("sort"))) state.sort = found.get("sort")
  if (colorings().some(([name]) => name === found.get("color"))) state.color = found.get("color")
  if (["dark", "light"].includes(found.get("theme"))) state.theme = found.get("theme")
  const size = Number(found.get("size"))
  if (size >= 140 && size <= 520) state.size = size
  for (const name of SWITCHES) if (found.has(name)) state[name] = found.get(name) === "1"
  state.words = found.get("q") ?? ""
  for (const tag of found.getAll("status")) if (tagNames.has(tag)) state.tags.add(tag)
  for (const id of found.getAll("class")) {
    const place = CLASSES.findIndex((one) => String(one.id) === id)
    if (place >= 0) state.classes.add(place)
  }
  for (const text of found.getAll("range")) {
    const parts = text.split("~"), high = Number(parts.pop()), low = Number(parts.pop()), name = parts.join("~")
    if (text.endsWith("~all")) state.ranges.delete(text.slice(0, -"~all".length))
    else if (columns.has(name) && low <= high) setRange(name, low, high)
  }
  state.open = images.find((image) => String(image.id) === found.get("open")) ?? null
}
