// Colours, and masks on a canvas.

const FAR = 0.618034                     // neighbours in a sequence of hues are far apart

function hueColor(place) {
  const hue = Math.round(360 * ((0.58 + place * FAR) % 1))
  return `hsl(${hue} 95% ${[62, 52, 70][place % 3]}%)`
}

// From red (bad) through yellow to green (good), as far apart for eyes that see red and green alike as brightness allows.
function scaleColor(part) {
  const at = Math.min(1, Math.max(0, part))
  return at < 0.5 ? `hsl(${Math.round(90 * at)} 95% ${50 + 14 * at}%)` : `hsl(${Math.round(45 + 190 * (at - 0.5))} 85% ${57 - 20 * (at - 0.5)}%)`
}

const GREY = "hsl(0 0% 70%)"
const LESS_IS_BETTER = /uncertainty|mixed|duplicate|border|fragments|holes|tiny|disagree/

function colorings() {
  const found = [["class", "Class"], ["mask", "Mask"]]
  for (const column of columns.values()) if (column.name !== "area") found.push([column.name, title(column.name)])
  return found
}

// The rank of a value among all masks, 0..1: a column may have most of its values in a small part of its range.
function rankOf(column, value) {
  column.sorted ??= Float32Array.from(column.values.filter((one) => !Number.isNaN(one))).sort()
  let low = 0, high = column.sorted.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (column.sorted[middle] < value) low = middle + 1
    else high = middle
  }
  return column.sorted.length > 1 ? low / (column.sorted.length - 1) : 0.5
}

function colorOf(image, mask) {
  if (state.color === "class") return hueColor(maskClass[mask])
  const column = columns.get(state.color)
  if (!column) return hueColor(mask - image.first)
  const value = column.values[mask]
  if (Number.isNaN(value)) return GREY
  const unit = column.min >= 0 && column.max <= 1
  const part = LESS_IS_BETTER.test(column.name) ? 1 - (column.flag ? value : rankOf(column, value))
    : unit ? (column.name.endsWith("iou") ? (value - 0.4) / 0.6 : value) : rankOf(column, value)
  return scaleColor(part)
}

// Draws the masks shown of an image, those that score best on top. `scale`: pixels of the canvas for one of the picture.
// `truth`: which of its objects are outlined, all or those missed.
function drawShapes(pen, image, shapes, scale, { chosen = -1, truth }) {
  if (state.truth && image.truth && truth === "all") drawTruth(pen, image, shapes, scale, false)
  const light = chosen >= 0 ? 0.14 : 0.3
  pen.lineJoin = "round"
  for (let place = image.count - 1; place >= 0; place--) {
    const mask = image.first + place, one = shapes.masks[place]
    if (!selected.shown[mask] || !one || !one.w) continue
    const color = colorOf(image, mask), picked = place === chosen
    if (state.masks) {
      pen.fillStyle = color
      pen.globalAlpha = picked ? 0.42 : light
      pen.fill(one.path, "evenodd")
      pen.globalAlpha = 1
      pen.lineWidth = (picked ? 5 : 2.6) / scale
      pen.strokeStyle = picked ? "rgb(255 255 255 / .9)" : "rgb(0 0 0 / .38)"
      pen.stroke(one.path)
      pen.lineWidth = (picked ? 2.4 : 1.3) / scale
      pen.strokeStyle = color
      pen.stroke(one.path)
    }
    if (state.boxes) {
      pen.lineWidth = (picked ? 2.5 : 1.3) / scale
      pen.strokeStyle = color
      pen.strokeRect(one.x, one.y, one.w, one.h)
    }
  }
  if (state.truth && image.truth) drawTruth(pen, image, shapes, scale, true)
}

// Objects found lie below the masks, as a white rim where a mask does not reach; those missed lie on top.
function drawTruth(pen, image, shapes, scale, missed) {
  shapes.truth.forEach((one, object) => {
    if (!isAsked(image, object) || missed === foundIou(image, object) > 0) return
    pen.setLineDash(missed && one.w * scale > 24 ? [5 / scale, 3 / scale] : [])
    pen.lineWidth = (missed && one.w * scale < 16 ? 1.3 : 2.2) / scale
    pen.strokeStyle = missed ? "#ff3df2" : "#ffffff"
    pen.stroke(one.path)
  })
  pen.setLineDash([])
}

// Where a picture lies in a space that it is to fill as far as it can.
function fitted(image, width, height, margin = 0) {
  const scale = Math.min((width - 2 * margin) / image.shownWidth, (height - 2 * margin) / image.shownHeight)
  return { scale, x: (width - scale * image.shownWidth) / 2, y: (height - scale * image.shownHeight) / 2 }
}

function number(value) {
  if (Number.isNaN(value)) return "–"
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en")
  if (Number.isInteger(value)) return String(value)
  return value.toFixed(Math.abs(value) < 10 ? 2 : 1)
}

const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`

function element(name, properties = {}, ...children) {
  const { dataset, ...rest } = properties
  const found = Object.assign(document.createElement(name), rest)
  Object.assign(found.dataset, dataset)
  found.append(...children.filter((child) => child !== null && child !== undefined))
  return found
}
