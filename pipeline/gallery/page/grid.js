// The grid of all images selected. Only the cells in view exist.

const grid = { columns: 1, cellWidth: 0, cellHeight: 0, cells: new Map(), current: 0, queue: [], busy: false }
const scroller = document.getElementById("images"), sheet = document.getElementById("grid")

function layOut() {
  const width = sheet.clientWidth
  grid.columns = Math.max(1, Math.floor(width / state.size))
  grid.cellWidth = Math.floor(width / grid.columns)
  grid.cellHeight = Math.round(grid.cellWidth * 0.78) + 48
  sheet.style.height = `${Math.ceil(selected.order.length / grid.columns) * grid.cellHeight}px`
}

// Shows the grid anew: after a change of the selection (`anew`), or of the drawing alone.
function renderGrid(anew) {
  if (anew) {
    for (const cell of grid.cells.values()) cell.remove()
    grid.cells.clear()
    grid.queue = []
    grid.current = Math.min(grid.current, Math.max(0, selected.order.length - 1))
    layOut()
  } else {
    for (const [place, cell] of grid.cells) enqueue(place, cell)
  }
  fillGrid()
}

function fillGrid() {
  const rowsTotal = Math.ceil(selected.order.length / grid.columns)
  const first = Math.max(0, Math.floor(scroller.scrollTop / grid.cellHeight) - 1)
  const last = Math.min(rowsTotal, Math.ceil((scroller.scrollTop + scroller.clientHeight) / grid.cellHeight) + 1)
  const from = first * grid.columns, to = Math.min(last * grid.columns, selected.order.length)
  for (const [place, cell] of grid.cells) {
    if ((place < from || place >= to) && !cell.contains(document.activeElement)) {
      cell.remove()
      grid.cells.delete(place)
    }
  }
  for (let place = from; place < to; place++) if (!grid.cells.has(place)) addCell(place)
  for (const [place, cell] of grid.cells) cell.firstChild.tabIndex = place === grid.current ? 0 : -1
}

function addCell(place) {
  const image = selected.order[place]
  const picture = element("div", { className: "picture" })
  if (image.picture !== null) {
    picture.append(element("img", { src: fileUrl(image.picture), alt: "", decoding: "async", draggable: false }))
  } else {
    picture.append(element("span", { className: "gone", textContent: image.problem ?? image.error ?? "no picture" }))
  }
  picture.append(element("canvas"))
  const facts = factsOf(image)
  const button = element("button", { type: "button", tabIndex: -1 },
    picture,
    element("span", { className: "caption" },
      keyLine(image.key),
      element("span", { className: "facts" }, ...facts)))
  button.setAttribute("aria-label", `${image.key}: ${facts.map((fact) => fact.textContent).join(", ")}`)
  button.addEventListener("click", () => openImage(image))
  button.addEventListener("focus", () => { grid.current = place })
  const cell = element("div", { className: "cell", dataset: { id: String(image.id) } }, button)
  cell.setAttribute("role", "listitem")
  cell.setAttribute("aria-setsize", selected.order.length)
  cell.setAttribute("aria-posinset", place + 1)
  Object.assign(cell.style, {
    width: `${grid.cellWidth}px`, height: `${grid.cellHeight}px`,
    left: `${(place % grid.columns) * grid.cellWidth}px`, top: `${Math.floor(place / grid.columns) * grid.cellHeight}px`,
  })
  grid.cells.set(place, cell)
  sheet.append(cell)
  enqueue(place, cell)
}

// A key, shortened in its middle: paths differ at their ends.
function keyLine(key) {
  const letters = [...key], cut = Math.max(0, letters.length - 14)
  return element("span", { className: "key", title: key }, element("span", { textContent: letters.slice(0, cut).join("") }),
    element("span", { textContent: letters.slice(cut).join("") }))
}

function factsOf(image) {
  const badge = (kind, text) => element("span", { className: `badge ${kind}`, textContent: text })
  const facts = []
  if (image.status === "quarantined") facts.push(badge("bad", tagText(image.tags[0])))
  else facts.push(element("span", { textContent: counted(selected.counts[image.index], "mask") }))
  if (image.status === "empty") facts.push(badge("plain", "empty"))
  const lowest = worst(image)
  if (!Number.isNaN(lowest)) {
    const kind = lowest < 0.6 ? "bad" : lowest < 0.75 ? "warn" : "good"
    const mark = badge(worstColumn() === "score" ? "plain" : kind, `worst ${number(lowest)}`)
    mark.title = `The lowest value of “${title(worstColumn())}” among the masks shown`
    facts.push(mark)
  }
  if (image.truth) {
    const { missed } = matched(image)
    if (missed) facts.push(badge("bad", `${missed} missed`))
  }
  if (image.corrected) facts.push(badge("plain", image.change === null ? "corrected" : `corrected, ${number(100 * image.change)} %`))
  if (image.problem !== null) facts.push(badge("bad", "no picture"))
  return facts
}

// --- Masks are drawn between frames, a few milliseconds at a time.

function enqueue(place, cell) {
  grid.queue.push([place, cell])
  if (!grid.busy) {
    grid.busy = true
    requestAnimationFrame(drawQueue)
  }
}

function drawQueue() {
  const until = performance.now() + 10
  while (grid.queue.length && performance.now() < until) {
    const [place, cell] = grid.queue.shift()
    if (grid.cells.get(place) === cell) drawCell(cell, selected.order[place])
  }
  if (grid.queue.length) requestAnimationFrame(drawQueue)
  else grid.busy = false
}

function drawCell(cell, image) {
  const canvas = cell.querySelector("canvas")
  if (!image.count && !image.truth) return
  const shapes = masksReady(image)
  if (!shapes) {
    loadMasks(image).then(() => {
      if (cell.isConnected) enqueue(Number(cell.getAttribute("aria-posinset")) - 1, cell)
    }, () => { canvas.title = "The masks could not be loaded." })
    return
  }
  const ratio = window.devicePixelRatio || 1
  canvas.width = Math.round(canvas.clientWidth * ratio)
  canvas.height = Math.round(canvas.clientHeight * ratio)
  const pen = canvas.getContext("2d"), place = fitted(image, canvas.width, canvas.height)
  pen.setTransform(place.scale, 0, 0, place.scale, place.x, place.y)
  drawShapes(pen, image, shapes, place.scale / ratio, { truth: "missed" })
  cell.dataset.drawn = String(selected.counts[image.index])
}

function focusCell(place) {
  if (!selected.order.length) return
  grid.current = Math.min(selected.order.length - 1, Math.max(0, place))
  showRow(grid.current)
  fillGrid()
  grid.cells.get(grid.current)?.firstChild.focus({ preventScroll: true })
}

function showRow(place) {
  const top = Math.floor(place / grid.columns) * grid.cellHeight
  if (top < scroller.scrollTop) scroller.scrollTop = top
  else if (top + grid.cellHeight > scroller.scrollTop + scroller.clientHeight) {
    scroller.scrollTop = top + grid.cellHeight - scroller.clientHeight
  }
}

scroller.addEventListener("scroll", () => requestAnimationFrame(fillGrid), { passive: true })
new ResizeObserver(() => {
  if (!selected.order.length) return
  const keep = Math.floor(scroller.scrollTop / Math.max(1, grid.cellHeight)) * grid.columns
  renderGrid(true)
  scroller.scrollTop = Math.floor(keep / grid.columns) * grid.cellHeight
  fillGrid()
}).observe(scroller)
