// One image, large: zoomed, dragged, and its masks as a list.

const viewer = document.getElementById("viewer"), canvas = document.getElementById("canvas")
const side = document.getElementById("side"), tip = document.getElementById("tip")
const view = { image: null, picture: null, shapes: null, scale: 1, x: 0, y: 0, fit: true, chosen: -1, pointed: -1, order: ["score", -1] }

function openImage(image) {
  if (view.image !== image) {
    Object.assign(view, { image, picture: null, shapes: null, fit: true, chosen: -1, pointed: -1 })
    loadView(image)
  }
  state.open = image
  keepAddress()
  if (!viewer.open) viewer.showModal()
  showView()
}

function closeImage() {
  const place = selected.order.indexOf(view.image)
  state.open = null
  view.image = null
  keepAddress()
  if (viewer.open) viewer.close()
  if (place >= 0) focusCell(place)
}

function loadView(image) {
  if (image.picture !== null) {
    const picture = new Image()
    picture.onload = () => { if (view.image === image) { view.picture = picture; paint() } }
    picture.onerror = () => { if (view.image === image) note("The picture could not be loaded.") }
    picture.src = fileUrl(image.picture)
  }
  if (image.count || image.truth) {
    loadMasks(image).then((shapes) => { if (view.image === image) { view.shapes = shapes; paint() } },
      () => { if (view.image === image) note("The masks could not be loaded.") })
  }
  const place = selected.order.indexOf(image)
  for (const other of [selected.order[place + 1], selected.order[place - 1]]) {
    if (other?.picture) new Image().src = fileUrl(other.picture)      // the browser keeps it
  }
}

function note(text) {
  const line = document.getElementById("stage-note")
  line.hidden = text === null
  line.textContent = text ?? ""
}

function step(by) {
  const place = selected.order.indexOf(view.image), next = selected.order[place + by]
  if (next) openImage(next)
}

function showView() {
  const image = view.image, place = selected.order.indexOf(image)
  document.getElementById("viewer-title").textContent = image.key
  document.getElementById("viewer-title").title = image.key
  document.getElementById("viewer-place").textContent = place >= 0 ? `${(place + 1).toLocaleString("en")} of ${selected.order.length.toLocaleString("en")}` : "not in the selection"
  document.getElementById("previous").disabled = place <= 0
  document.getElementById("next").disabled = place === selected.order.length - 1
  canvas.setAttribute("aria-label", `${image.key}, with ${counted(selected.counts[image.index], "mask")} drawn over it`)
  note(image.picture === null ? `No picture: ${image.problem ?? image.error ?? "unknown"}` : null)
  showSide()
  paint()
}

// --- The list of masks.

function showSide() {
  const image = view.image, facts = [["Key", image.key], ["Status", [...new Set(image.tags.filter((tag) => !["worst", "sample", "gone"].includes(tag)).map(tagText))].join(", ")]]
  if (image.error) facts.push(["Reason", image.error])
  if (image.height) facts.push(["Size", `${image.width} × ${image.height} px` + (image.width === image.shownWidth ? "" : `, shown at ${image.shownWidth} × ${image.shownHeight}`)])
  facts.push(["Image id", String(image.id)])
  if (image.uri) facts.push(["From", image.uri])
  if (image.corrected) facts.push(["Correction", `number ${image.corrected}` + (image.change === null ? "" : `, which changed ${number(100 * image.change)} %`)])
  if (image.truth) {
    const { right, objects, missed } = matched(image)
    facts.push(["Truth", `${right} of ${counted(objects, "object")} found${missed ? `, ${missed} missed` : ""}`])
  }
  const list = element("dl")
  for (const [name, text] of facts) list.append(element("dt", { textContent: name }), element("dd", { textContent: text }))
  const shown = selected.counts[image.index]
  side.replaceChildren(list, element("h3", { textContent: "Masks" },
    element("span", { textContent: shown === image.count ? String(shown) : `${shown} of ${image.count} shown` })))
  if (shown) side.append(maskTable(image))
  else side.append(element("p", { className: "about", textContent: image.count ? "All are filtered out." : "None." }))
}

function tableColumns() {
  const first = ["score", "predicted_iou", "true_iou", "boundary_uncertainty"].filter((name) => columns.has(name))
  if (columns.has(state.color) && !first.includes(state.color)) first.push(state.color)
  return [...first.slice(0, 4), "area"]
}

function maskTable(image) {
  const names = tableColumns(), head = element("tr"), [sorted, way] = view.order
  const heading = (name, text) => {
    const button = element("button", { type: "button", textContent: text })
    button.addEventListener("click", () => {
      view.order = [name, sorted === name ? -way : 1]
      showSide()
      side.querySelector(`th:nth-child(${["class", ...names].indexOf(name) + 1}) button`)?.focus()
    })
    const cell = element("th", { scope: "col" }, button)
    if (sorted === name) cell.setAttribute("aria-sort", way > 0 ? "ascending" : "descending")
    head.append(cell)
  }
  heading("class", "Class")
  const short = { score: "Score", predicted_iou: "Pred. IoU", true_iou: "True IoU", boundary_uncertainty: "Uncertain", area: "Area" }
  for (const name of names) heading(name, short[name] ?? title(name))
  const masks = []
  for (let mask = image.first; mask < image.first + image.count; mask++) if (selected.shown[mask]) masks.push(mask)
  const value = (mask) => (sorted === "class" ? maskClass[mask] : columns.get(sorted).values[mask])
  masks.sort((a, b) => Number.isNaN(value(a)) - Number.isNaN(value(b)) || way * (value(a) - value(b)) || a - b)
  const body = element("tbody")
  for (const mask of masks) {
    const place = mask - image.first, dot = element("span", { className: "dot" })
    dot.style.background = colorOf(image, mask)
    const name = CLASSES[maskClass[mask]].name
    const button = element("button", { type: "button", title: name }, dot, element("span", { textContent: name }))
    const row = element("tr", { dataset: { mask: place } }, element("td", {}, button))
    for (const column of names) row.append(element("td", { textContent: number(columns.get(column).values[mask]) }))
    row.addEventListener("click", () => choose(view.chosen === place ? -1 : place, true))
    row.addEventListener("mouseenter", () => point(place))
    row.addEventListener("mouseleave", () => point(-1))
    body.append(row)
  }
  return element("table", {}, element("thead", {}, head), body)
}

function choose(place, centre) {
  view.chosen = place
  if (place >= 0 && centre && view.shapes) bringIntoView(view.shapes.masks[place])
  markRows()
  if (place >= 0 && !centre) side.querySelector(`tr[data-mask="${place}"]`)?.scrollIntoView({ block: "nearest" })
  paint()
}

function point(place) {
  if (view.pointed === place) return
  view.pointed = place
  markRows()
  paint()
}

function markRows() {
  for (const row of side.querySelectorAll("tr[data-mask]")) {
    row.classList.toggle("chosen", Number(row.dataset.mask) === view.chosen)
    row.classList.toggle("pointed", Number(row.dataset.mask) === view.pointed)
  }
}

// --- Drawing and moving. `scale` is in pixels of the window for one of the picture.

let painting = false
function paint() {
  if (painting) return
  painting = true
  requestAnimationFrame(() => {
    painting = false
    if (view.image) paintNow()
  })
}

function paintNow() {
  const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas, image = view.image
  canvas.width = Math.round(width * ratio)
  canvas.height = Math.round(height * ratio)
  if (view.fit && image.height) Object.assign(view, fitted(image, width, height, 16))
  const pen = canvas.getContext("2d")
  pen.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.x * ratio, view.y * ratio)
  pen.imageSmoothingEnabled = view.scale < 4
  if (view.picture) pen.drawImage(view.picture, 0, 0, image.shownWidth, image.shownHeight)
  if (view.shapes) drawShapes(pen, image, view.shapes, view.scale, { chosen: view.pointed >= 0 ? view.pointed : view.chosen, truth: "all" })
  canvas.dataset.image = view.picture || image.picture === null ? String(image.id) : ""
  canvas.dataset.masks = view.shapes ? String(selected.counts[image.index]) : ""
  canvas.dataset.scale = view.scale.toFixed(3)
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const scale = Math.min(40, Math.max(0.05, view.scale * factor)), by = scale / view.scale
  Object.assign(view, { fit: false, scale, x: x - by * (x - view.x), y: y - by * (y - view.y) })
  paint()
}

function bringIntoView(shape) {
  if (view.fit) return
  const inside = (at, size, total) => at >= 0 && at + size <= total
  const [x, y, w, h] = [view.x + shape.x * view.scale, view.y + shape.y * view.scale, shape.w * view.scale, shape.h * view.scale]
  if (inside(x, w, canvas.clientWidth) && inside(y, h, canvas.clientHeight)) return
  view.x += canvas.clientWidth / 2 - (x + w / 2)
  view.y += canvas.clientHeight / 2 - (y + h / 2)
}

// The smallest mask shown at a place of the window, as small ones lie on large ones.
function maskAt(x, y) {
  if (!view.shapes || !state.masks) return -1
  const pen = canvas.getContext("2d"), px = (x - view.x) / view.scale, py = (y - view.y) / view.scale
  let found = -1, least = Infinity
  pen.setTransform(1, 0, 0, 1, 0, 0)
  view.shapes.masks.forEach((one, place) => {
    const size = one.w * one.h
    if (!selected.shown[view.image.first + place] || size >= least) return
    if (px < one.x || py < one.y || px > one.x + one.w || py > one.y + one.h) return
    if (pen.isPointInPath(one.path, px, py, "evenodd")) [found, least] = [place, size]
  })
  return found
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault()
  zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.offsetX, event.offsetY)
}, { passive: false })
const fingers = new Map()
let moved = 0
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId)
  fingers.set(event.pointerId, event)
  if (fingers.size === 1) moved = 0
})
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId)
  if (!before) {
    const place = maskAt(event.offsetX, event.offsetY)
    point(place)
    showTip(place, event)
    return
  }
  const dx = event.offsetX - before.offsetX, dy = event.offsetY - before.offsetY
  moved += Math.abs(dx) + Math.abs(dy)
  if (fingers.size === 2) {
    const other = [...fingers.values()].find((one) => one.pointerId !== event.pointerId)
    const span = (one) => Math.hypot(one.offsetX - other.offsetX, one.offsetY - other.offsetY)
    zoom(span(event) / Math.max(1, span(before)), other.offsetX, other.offsetY)
  } else if (moved > 3) {
    canvas.classList.add("dragging")
    tip.hidden = true
    Object.assign(view, { fit: false, x: view.x + dx, y: view.y + dy })
    paint()
  }
  fingers.set(event.pointerId, event)
})
function lift(event) {
  if (fingers.delete(event.pointerId) && moved <= 3 && event.type === "pointerup") choose(maskAt(event.offsetX, event.offsetY), false)
  canvas.classList.remove("dragging")
}
canvas.addEventListener("pointerup", lift)
canvas.addEventListener("pointercancel", lift)
canvas.addEventListener("pointerleave", () => { tip.hidden = true; point(-1) })
canvas.addEventListener("dblclick", (event) => (view.fit ? zoom(3, event.offsetX, event.offsetY) : fit()))

function fit() {
  view.fit = true
  paint()
}

function showTip(place, event) {
  tip.hidden = place < 0
  if (place < 0) return
  const mask = view.image.first + place
  const figures = tableColumns().filter((name) => name !== "area").map((name) => `${title(name)} ${number(columns.get(name).values[mask])}`)
  tip.replaceChildren(element("b", { textContent: CLASSES[maskClass[mask]].name }), element("br"), figures.join(" · "))
  const stage = canvas.parentElement
  tip.style.left = `${Math.min(event.offsetX + 14, stage.clientWidth - tip.offsetWidth - 8)}px`
  tip.style.top = `${Math.min(event.offsetY + 16, stage.clientHeight - tip.offsetHeight - 8)}px`
}

new ResizeObserver(paint).observe(canvas.parentElement)
viewer.addEventListener("cancel", (event) => { event.preventDefault(); closeImage() })
document.getElementById("previous").addEventListener("click", () => step(-1))
document.getElementById("next").addEventListener("click", () => step(1))
document.getElementById("close").addEventListener("click", closeImage)
document.getElementById("zoom-in").addEventListener("click", () => zoom(1.5))
document.getElementById("zoom-out").addEventListener("click", () => zoom(1 / 1.5))
document.getElementById("zoom-fit").addEventListener("click", fit)
