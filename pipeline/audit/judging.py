"""A page to judge a sample with, in any browser and without a server: it makes the table of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --ground: #f6f7f9; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 24px 48px; }
h1 { font-size: 20px; margin: 0; }
header, nav { display: flex; gap: 16px; align-items: center; flex-wrap: wrap; }
header span, p { color: var(--soft); }
#bar { height: 6px; background: var(--line); border-radius: 3px; margin: 12px 0; }
#bar div { height: 100%; width: 0; background: var(--accent); border-radius: 3px; }
h2 { font-size: 24px; margin: 0 0 8px; }
#card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 22px; }
img { max-width: 100%; max-height: 62vh; min-height: 80px; display: block; border-radius: 6px; }
#choices { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 10px; margin: 14px 0 0; }
button { font: inherit; text-align: left; padding: 9px 12px; border: 1px solid var(--line); border-radius: 8px;
  background: #fff; cursor: pointer; color: var(--ink); }
button:hover { border-color: var(--accent); }
button.on { background: var(--accent); border-color: var(--accent); color: #fff; }
button.on small { color: #dbeafe; }
button small { display: block; color: var(--soft); line-height: 1.3; }
kbd { font: 12px ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px; padding: 0 5px;
  margin-right: 6px; }
nav { margin-top: 14px; }
#save { background: var(--accent); border-color: var(--accent); color: #fff; margin-left: auto; }
"""

_SCRIPT = """
"use strict";
const { run, columns, verdicts, rows } = JSON.parse(document.getElementById("data").textContent);
const store = "patchlabel audit " + run;
const byId = id => document.getElementById(id);
let answers = {};
try { answers = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { answers = {}; }
const open = from => { for (let i = 0; i < rows.length; i++) { const at = (from + i) % rows.length;
  if (!answers[rows[at].mask]) return at; } return -1; };
let place = Math.max(0, open(0));
const numbers = [...Array(10).keys()].map(number => [String(number), number ? "without an outline" : "all have one"]);
const choices = () => rows[place].mask.startsWith("i") ? numbers : verdicts;
const buttonsOf = found => found.map(([name, words], i) => {
  const [button, key, small] = ["button", "kbd", "small"].map(tag => document.createElement(tag));
  key.textContent = found === numbers ? name : i + 1;
  small.textContent = words;
  button.append(key, found === numbers ? "" : name, small);
  button.onclick = () => answer(name);
  return button;
});
function show() {
  const row = rows[place], done = rows.filter(one => answers[one.mask]).length;
  byId("question").textContent = row.class || "Missed objects";
  byId("about").textContent = [row.image, row.score && "score " + row.score, row.note].filter(text => text).join(". ");
  byId("picture").src = row.picture; byId("picture").alt = row.class + " in " + row.image;
  byId("count").textContent = (place + 1) + " of " + rows.length + ", " + done + " answered";
  byId("done").style.width = 100 * done / rows.length + "%";
  const found = choices(), buttons = buttonsOf(found);
  byId("choices").replaceChildren(...buttons);
  buttons.forEach((button, i) => button.classList.toggle("on", answers[row.mask] === found[i][0]));
  const next = new Image(); next.src = rows[(place + 1) % rows.length].picture;
}
function keep() { try { localStorage.setItem(store, JSON.stringify(answers)); } catch (error) { /* private window */ } }
function answer(name) {
  const mask = rows[place].mask;
  if (answers[mask] === name) {
    delete answers[mask];
  } else {
    answers[mask] = name;
    const next = open(place + 1);
    if (next >= 0) place = next;
  }
  keep();
  show();
}
function move(step) { place = (place + step + rows.length) % rows.length; show(); }
function save() {
  const quoted = text => '"' + String(text).replace(/"/g, '""') + '"';
  const safe = text => /^[=+\\-@\\t]/.test(text) ? "'" + text : text;
  const value = (row, name) => name === "verdict" ? answers[row.mask] || "" : safe(row[name]);
  const lines = [columns, ...rows.map(row => columns.map(name => value(row, name)))];
  const text = lines.map(line => line.map(quoted).join(",") + "\\r\\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const number = /^[0-9]$/.test(event.key) ? Number(event.key) - (choices() === numbers ? 0 : 1) : -1;
  if (number >= 0 && number < choices().length) answer(choices()[number][0]);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "ArrowLeft") move(-1);
  else return;
  event.preventDefault();
});
byId("back").onclick = () => move(-1); byId("on").onclick = () => move(1); byId("save").onclick = save;
if (rows.length) show();
"""
_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(run_id: str, drawn: str, verdicts: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> str:
    """The page. Answers stay in the browser until they are saved as answers.csv.

    Args:
        run_id: the run.
        drawn: when the sample was, which tells its answers from others in the browser's memory.
        verdicts: what can be said, with its meaning.
        rows: of the table of answers, with `mask`, `class`, `score`, `image`, `note` and `picture`.
    """
    data = {
        "run": f"{run_id} {drawn}",
        "columns": list(rows[0]) if rows else [],
        "verdicts": list(verdicts.items()),
        "rows": rows,
    }
    text = json.dumps(data).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Audit of run {escape(run_id)}</title><style>{_STYLE}</style></head>
<body><main>
<header><h1>Audit of run {escape(run_id)}</h1><span id="count"></span></header>
<div id="bar"><div id="done"></div></div>
<div id="card"><h2 id="question"></h2><img id="picture" alt=""><p id="about"></p><div id="choices"></div>
<nav><button id="back"><kbd>&larr;</kbd>back</button><button id="on"><kbd>&rarr;</kbd>next</button>
<button id="save">save answers.csv</button></nav></div>
<p>On the left the image as it is, on the right with the outline of the mask, red, and those of others, blue. Keys 1 to
{len(verdicts)} answer and go on to the next question. Of whole images it is asked how many objects have no outline:
press the number, 9 for all beyond. Answers stay in this browser until you save them.</p>
</main>
<script type="application/json" id="data">{text}</script>
<script>{_SCRIPT}</script>
</body></html>
"""
