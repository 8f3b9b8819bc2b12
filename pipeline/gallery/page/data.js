"use strict"

// What the page knows: one row an image, one row a mask, in typed columns; and the masks themselves, loaded as needed.

const START = JSON.parse(document.getElementById("start").textContent)
const N = START.images, M = START.masks
const CLASSES = START.classes.map(([id, name], place) => ({ id, name, place, masks: 0 }))

const images = []                        // {key, id, status, ..., first, count}: masks first .. first + count - 1
const maskClass = new Uint16Array(M)     // its place in CLASSES
const maskImage = new Uint32Array(M)     // its image
const columns = new Map()                // name -> {name, values: Float32Array(M), min, max, known, flag}

window.patchlabelGallery = {
  table: (rows) => document.currentScript.receive(rows),
  masks: (rows) => document.currentScript.receive(rows),
}

function loadScript(file) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script")
    let received
    script.receive = (rows) => { received = rows }
    script.onload = () => { script.remove(); received === undefined ? reject(new Error(file)) : resolve(received) }
    script.onerror = () => { script.remove(); reject(new Error(file)) }
    script.src = fileUrl(file)
    document.head.append(script)
  })
}

function fileUrl(file) {
  return `${START.folder}/${encodeURIComponent(file)}`
}

function decoded(text, kind) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
  return new kind(bytes.buffer)
}

async function loadTables() {
  const tables = await Promise.all(START.tables.map(loadScript))
  let first = 0
  for (const table of tables) first = takeTable(table, first)
  for (const column of columns.values()) measure(column)
  for (const [name, column] of columns) if (!column.known) columns.delete(name)
  for (let mask = 0; mask < M; mask++) CLASSES[maskClass[mask]].masks++
}

// Appends a table, of which the masks begin at `first`; returns where those of the next one do.
function takeTable(table, first) {
  const classes = decoded(table.classes, Uint16Array)
  maskClass.set(classes, first)
  for (const [name, text] of table.columns) {
    if (!columns.has(name)) columns.set(name, { name, values: new Float32Array(M).fill(NaN) })
    columns.get(name).values.set(decoded(text, Float32Array), first)
  }
  const truthClasses = decoded(table.truthClasses, Uint16Array)
  const partners = decoded(table.truthPartners, Int32Array)
  let truthFirst = 0
  table.keys.forEach((key, place) => {
    const [width, height, shownWidth, shownHeight] = table.sizes[place]
    const count = table.counts[place], objects = table.truth[place]
    maskImage.fill(images.length, first, first + count)
    images.push({
      key, first, count, width, height, shownWidth, shownHeight, index: images.length, search: key.toLowerCase(),
      id: table.ids[place], uri: table.uris[place], status: table.status[place], error: table.errors[place],
      corrected: table.corrected[place], change: table.change[place], worst: table.worst[place] === 1,
      picture: table.pictures[place], problem: table.problems[place],
      file: table.maskFiles[Math.floor(place / table.masksPerFile)], placeInFile: place % table.masksPerFile,
      truth: objects === null ? null : {
        classes: truthClasses.subarray(truthFirst, truthFirst + objects),
        partners: partners.subarray(truthFirst, truthFirst + objects),
      },
    })
    first += count
    truthFirst += objects ?? 0
  })
  return first
}

function measure(column) {
  let min = Infinity, max = -Infinity, flag = true, known = 0
  for (const value of column.values) {
    if (Number.isNaN(value)) continue
    known++
    if (value < min) min = value
    if (value > max) max = value
    if (value !== 0 && value !== 1) flag = false
  }
  const share = !flag && min >= 0 && max <= 1
  Object.assign(column, { known, flag, min: share ? 0 : min, max: share ? 1 : max })
  column.long = column.min >= 0 && column.max > 50        // such a range is shown on a logarithmic scale
  column.whole = column.max - column.min > 50
}

const wordsOf = new Map([["score", "Score"], ["area", "Area (px)"], ["predicted_iou", "Predicted IoU"],
  ["true_iou", "IoU with the truth"]])
function title(name) {
  if (wordsOf.has(name)) return wordsOf.get(name)
  const words = name.replaceAll("_", " ").replace(/\biou\b/g, "IoU")
  return words.charAt(0).toUpperCase() + words.slice(1)
}

// --- Masks: compressed COCO RLE -> outlines along the edges of pixels, as Path2D in the pixels of the picture.

const waiting = new Map()                // file -> promise of its rows
const drawn = new Map()                  // image -> {masks, truth}, the most recent last
const MOST_DRAWN = 400

function masksReady(image) { return drawn.get(image.index) }

async function loadMasks(image) {
  if (drawn.has(image.index)) return drawn.get(image.index)
  if (!waiting.has(image.file)) {
    waiting.set(image.file, loadScript(image.file).catch((error) => { waiting.delete(image.file); throw error }))
  }
  const row = (await waiting.get(image.file))[image.placeInFile]
  if (!drawn.has(image.index)) {
    const shapes = row.map((text) => (text ? text.split(" ") : []).map((counts) => shape(counts, image)))
    drawn.set(image.index, { masks: shapes[0], truth: shapes[1] })
    if (drawn.size > MOST_DRAWN) drawn.delete(drawn.keys().next().value)
  }
  return drawn.get(image.index)
}

// The run lengths of compressed COCO RLE, background first, down the columns.
function runsOf(counts) {
  const runs = []
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, group
    do {
      group = counts.charCodeAt(at++) - 48
      value |= (group & 31) << shift
      shift += 5
    } while (group & 32)
    if (group & 16) value |= -1 << shift
    if (runs.length > 2) value += runs[runs.length - 2]
    runs.push(value)
  }
  return runs
}

// {path, x, y, w, h}: the outlines of a mask, holes too (to be filled by the even-odd rule), and its box.
function shape(counts, image) {
  const height = image.shownHeight, runs = runsOf(counts)
  let x0 = Infinity, y0 = Infinity, x1 = -1, y1 = -1
  for (let place = 1, at = runs[0]; place < runs.length; at += runs[place], place++) {
    if (place % 2 === 0 || runs[place] === 0) continue
    const last = at + runs[place] - 1
    const left = Math.floor(at / height), right = Math.floor(last / height)
    x0 = Math.min(x0, left)
    x1 = Math.max(x1, right)
    y0 = Math.min(y0, left === right ? at % height : 0)
    y1 = Math.max(y1, left === right ? last % height : height - 1)
  }
  const path = new Path2D()
  if (x1 < 0) return { path, x: 0, y: 0, w: 0, h: 0 }
  // Its pixels, with a rim of one, so that no neighbour is outside.
  const wide = x1 - x0 + 3, high = y1 - y0 + 3, pixels = new Uint8Array(wide * high)
  for (let place = 1, at = runs[0]; place < runs.length; at += runs[place], place++) {
    if (place % 2 === 0) continue
    for (let pixel = at; pixel < at + runs[place]; pixel++) {
      pixels[(pixel % height - y0 + 1) * wide + Math.floor(pixel / height) - x0 + 1] = 1
    }
  }
  trace(pixels, wide, high, x0 - 1, y0 - 1, path)
  return { path, x: x0, y: y0, w: x1 - x0 + 1, h: y1 - y0 + 1 }
}

// Walks along the edges between set pixels and others, with the set ones on the right, and closes each outline.
function trace(pixels, wide, high, left, top, path) {
  const seen = new Uint8Array(wide * high)               // upper edges that were walked along
  const stepX = [1, 0, -1, 0], stepY = [0, 1, 0, -1]     // east, south, west, north
  const ahead = [[-1, 0], [0, 0], [0, -1], [-1, -1]]     // rows/columns of the pixel ahead on the left, from a corner
  for (let y = 1; y < high - 1; y++) {
    for (let x = 1; x < wide - 1; x++) {
      const start = y * wide + x
      if (!pixels[start] || pixels[start - wide] || seen[start]) continue
      let cornerX = x, cornerY = y, way = 0
      path.moveTo(left + x, top + y)
      do {
        if (way === 0) seen[cornerY * wide + cornerX] = 1
        cornerX += stepX[way]
        cornerY += stepY[way]
        const leftAhead = pixels[(cornerY + ahead[way][0]) * wide + cornerX + ahead[way][1]]
        const rightAhead = pixels[(cornerY + ahead[(way + 1) % 4][0]) * wide + cornerX + ahead[(way + 1) % 4][1]]
        // Pixels that touch at a corner alone stay apart.
        const turn = !rightAhead ? 1 : leftAhead ? 3 : 0
        if (turn) {
          path.lineTo(left + cornerX, top + cornerY)
          way = (way + turn) % 4
        }
      } while (cornerX !== x || cornerY !== y || way !== 0)
      path.closePath()
    }
  }
}
