"use strict";
// State in, picture out: every event changes `state` and calls a function that draws.
// Cycles and verdicts came with the page. What it computes is how similar pixels are, for the heat.

const $ = (selector) => document.querySelector(selector);
const meta = JSON.parse($("#meta").textContent);
const sides = ["source", "target"];
const other = { source: "target", target: "source" };
const IGNORED = 255;
const root = document.documentElement;
const colors = typed("uint8", meta.colors);

const state = {
  pair: 0,
  level: "features",
  alpha: meta.alphas.indexOf(meta.alpha), // its number among meta.alphas
  chosen: null, // {side, index}; null: the photographs as they are, with an example
  pinned: false,
  filter: null, // train id or "all": their cells are marked
};
const loaded = []; // pairs, decoded when they are first looked at
let pair = null; // the one that is looked at

// ---------------------------------------------------------------- data

function typed(type, base64) {
  const types = { int8: Int8Array, int16: Int16Array, uint8: Uint8Array, uint16: Uint16Array };
  return new types[type](Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
}

function load(n) {
  if (loaded[n]) return loaded[n];
  const info = JSON.parse($(`#pair-${n}`).textContent), got = {};
  const get = (name) => (got[name] ??= info.arrays[name] && typed(...info.arrays[name]));
  const size = Object.fromEntries(sides.map((side) => [side, info[side].width * info[side].height]));
  return (loaded[n] = { ...info, get, size, vectors: {}, labels: get("labels"), predicted: get("predicted"), truth: get("truth") });
}

// All vectors of an image as they are compared, pixel after pixel: prepare.py.
function vectors(side) {
  const { level, alpha } = state, scale = pair.scale[level], d = scale.length;
  pair.vectors[level] ??= Float32Array.from(pair.get(level), (step, at) => step * scale[at % d]);
  const start = side === "source" ? 0 : pair.size.source + alpha * pair.size.target;
  return pair.vectors[level].subarray(start * d, (start + pair.size[side]) * d);
}

// Of one pixel to all of the other image: the cosine of features, or e^-KL of class probabilities.
function similarities(side, index) {
  const features = state.level === "features", d = pair.scale[state.level].length;
  const row = vectors(side).subarray(index * d, (index + 1) * d), y = vectors(other[side]);
  const weights = features ? row : row.map(Math.exp), out = new Float32Array(pair.size[other[side]]);
  const constant = features ? 0 : weights.reduce((sum, p, c) => sum - p * row[c], 0);
  for (let j = 0, at = 0; j < out.length; j++) {
    let sum = constant;
    for (let c = 0; c < d; c++) sum += weights[c] * y[at++];
    out[j] = features ? sum : Math.exp(sum);
  }
  return out;
}

const ways = (name) => pair.get(`${state.level} ${state.alpha} ${name}`);

function follow({ side, index }) {
  const far = other[side], [go, come] = side === "source" ? [ways("there"), ways("back")] : [ways("back"), ways("there")];
  const turn = go[index], heat = { [far]: similarities(side, index), [side]: similarities(far, turn) };
  return { side, far, start: index, turn, end: come[turn], heat };
}

// A cycle from the source is closed by its labels. One from the target has none: both ends are predicted to be of one class, or not.
function verdict({ side, start, end }) {
  if (side === "source") return ways("closed")[start] ? [true, "✓ closed"] : [false, "✕ open"];
  return pair.predicted[start] === pair.predicted[end] ? [true, "✓ same class predicted"] : [false, "✕ another class predicted"];
}

// A closed cycle near the middle.
function example() {
  const { width, height } = pair.source, closed = ways("closed");
  let best = 0, least = Infinity;
  for (let i = 0; i < closed.length; i++) {
    const distance = ((i % width) - width / 2) ** 2 + (Math.floor(i / width) - height * 0.6) ** 2 + (closed[i] ? 0 : 1e9);
    if (distance < least) [best, least] = [i, distance];
  }
  return { side: "source", index: best };
}

// ---------------------------------------------------------------- drawing

const shown = () => (state.chosen || state.filter === null ? follow(state.chosen ?? example()) : null);

function draw() {
  const cycle = shown();
  for (const side of sides) {
    $(`#${side}`).classList.toggle("showing", !!state.chosen);
    if (state.chosen) drawHeat(side, cycle.heat[side]);
  }
  drawWay(cycle);
  drawCells();
  showCycle(cycle);
  return cycle;
}

function drawHeat(side, values) {
  const canvas = $(`#${side} .heat`), context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const features = state.level === "features"; // e^-KL lies between 0 and 1, and cosines often in a small part of -1 to 1
  const low = features ? values.reduce((a, b) => Math.min(a, b)) : 0, high = features ? values.reduce((a, b) => Math.max(a, b)) : 1;
  for (let n = 0; n < values.length; n++) {
    const level = Math.max(0, Math.min(255, Math.round((255 * (values[n] - low)) / (high - low || 1))));
    image.data.set([...colors.subarray(3 * level, 3 * level + 3), 255], 4 * n);
  }
  context.putImageData(image, 0, 0);
  $(`#${side} .low`).textContent = `${features ? "cosine" : "e^−KL"} ${signed(low)}`;
  $(`#${side} .high`).textContent = signed(high);
}

function center(side, index) {
  const { width, height } = pair[side], views = $("#views").getBoundingClientRect(), stage = $(`#${side} .stage`).getBoundingClientRect();
  return [
    stage.left - views.left + (((index % width) + 0.5) / width) * stage.width,
    stage.top - views.top + ((Math.floor(index / width) + 0.5) / height) * stage.height,
  ];
}

function drawWay(cycle) {
  if (!cycle) return void $("#way").replaceChildren();
  const points = [center(cycle.side, cycle.start), center(cycle.far, cycle.turn), center(cycle.side, cycle.end)];
  // Two arcs, bent to different sides, one there, one back, and neither over the words above and below the images.
  const [first, last] = sides.map((side) => $(`#${side} .stage`)), inside = (y) => Math.max(first.offsetTop, Math.min(last.offsetTop + last.offsetHeight, y));
  const arc = ([x, y], [u, v]) => `M${x} ${y}Q${(x + u) / 2 + (v - y) * 0.16} ${inside((y + v) / 2 - (u - x) * 0.16)} ${u} ${v}`;
  const there = arc(points[0], points[1]), back = arc(points[1], points[2]);
  const badge = ([x, y], n) => `<circle cx="${x}" cy="${y}" r="9"/><text x="${x}" y="${y}">${n}</text>`;
  const ring = ([x, y]) => ["ring under", "ring"].map((name) => `<circle class="${name}" cx="${x}" cy="${y}" r="14"/>`).join("");
  $("#way").innerHTML =
    `<path class="under" d="${there}"/><path class="under" d="${back}"/><path d="${there}"/><path class="back" d="${back}"/>` +
    (cycle.start === cycle.end ? ring(points[2]) : badge(points[2], 3)) + badge(points[0], 1) + badge(points[1], 2);
}

// Cells of the cycles of the filtered class, while no single cycle is looked at.
function drawCells() {
  const fill = [null, "--closed", "--open"].map((name) => name && getComputedStyle(root).getPropertyValue(name));
  const marks = { source: new Uint8Array(pair.size.source), target: new Uint8Array(pair.size.target) };
  if (state.filter !== null && !state.chosen) {
    const there = ways("there"), closed = ways("closed"), { labels, truth } = pair;
    for (let i = 0; i < labels.length; i++) {
      if (labels[i] === IGNORED || (state.filter !== "all" && labels[i] !== state.filter)) continue;
      marks.source[i] = closed[i] ? 1 : 2;
      if (closed[i]) marks.target[there[i]] = truth && truth[there[i]] !== IGNORED && truth[there[i]] !== labels[i] ? 2 : 1;
    }
  }
  for (const side of sides) {
    const canvas = $(`#${side} .cells`), context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.78;
    marks[side].forEach((mark, n) => {
      context.fillStyle = fill[mark];
      if (mark) context.fillRect(n % canvas.width, Math.floor(n / canvas.width), 1, 1);
    });
  }
}

// ---------------------------------------------------------------- words

const className = (id) => (id === IGNORED || id === undefined ? "unlabelled" : meta.classes[id].name);
const swatch = (id) => `<i class="swatch" style="background:${id < meta.classes.length ? meta.classes[id].color : "#000"}"></i>`;
const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const signed = (value) => value.toFixed(2).replace("-", "−");
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const place = (side, index) => `${index % pair[side].width}, ${Math.floor(index / pair[side].width)}`;
const classAt = (side, index) => (side === "source" ? pair.labels : pair.predicted)[index];

function showCycle(cycle) {
  $("#pin").style.visibility = state.chosen ? "visible" : "hidden";
  $("#pin").textContent = state.pinned ? "Unpin" : "Click to pin";
  if (!cycle) {
    const what = `<b>${state.filter === "all" ? "all classes" : escape(className(state.filter))}</b>`;
    const there = state.filter === "all" || pair.labels.includes(state.filter);
    $("#steps").innerHTML = there ? `<p>Marked: the cycles of ${what}. Point at a cell to follow one; Esc ends this.</p>`
      : `<p>No pixel of this source image is labelled ${what}.</p>`;
    return;
  }
  const { side, far, start, turn, end, heat } = cycle, [closed, word] = verdict(cycle);
  const step = (n, at, index) => {
    const truth = at === "target" && pair.truth ? `, label ${className(pair.truth[index])}` : "";
    const note = `${at === "source" ? "source label" : "target prediction"}${truth} at ${place(at, index)}`;
    return `<div class="step"><b>${n}</b><div>${swatch(classAt(at, index))}${escape(className(classAt(at, index)))}<small>${escape(note)}</small></div></div>`;
  };
  const about = state.level === "features" ? ["cosine", "Of the two feature vectors: 1 in one direction, 0 at right angles."]
    : ["e^−KL", "From the Kullback–Leibler divergence of the two class probabilities: 1 where they are the same, towards 0 the less they agree."];
  const link = (value) => `<div class="link">→ <span data-tip="${about[1]}">${about[0]}</span> ${signed(value)}</div>`;
  const tip = side === "source" ? "Closed: 1 and 3 carry one label. Only closed cycles are trained on." : "The target has no labels: what the network predicts is compared.";
  $("#steps").innerHTML = (state.chosen ? "" : '<span class="link">Example</span>') + step(1, side, start) + link(heat[far][turn]) + step(2, far, turn) +
    link(heat[side][end]) + step(3, side, end) + `<span class="verdict ${closed ? "closed" : ""}" data-tip="${tip}">${word}</span>`;
}

let speaking = 0;
function say(cycle) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const at = (side, index) => `${side} ${place(side, index)}, ${className(classAt(side, index))}`;
    const { side, far, start, turn, end } = cycle;
    $("#said").textContent = `From ${at(side, start)}, to ${at(far, turn)}, back to ${at(side, end)}: ${verdict(cycle)[1].slice(2)}.`;
  }, 250);
}

function showFigures() {
  const ids = [...new Set(pair.labels)].filter((id) => id !== IGNORED).sort((a, b) => a - b);
  const rows = new Map(["all", ...ids].map((key) => [key, { pixels: 0, closed: 0, known: 0, correct: 0, hit: new Set() }]));
  const there = ways("there"), closed = ways("closed");
  pair.labels.forEach((id, i) => {
    if (id === IGNORED) return;
    for (const row of [rows.get(id), rows.get("all")]) {
      row.pixels++;
      if (!closed[i]) continue;
      row.closed++;
      row.hit.add(there[i]);
      if (!pair.truth || pair.truth[there[i]] === IGNORED) continue;
      row.known++;
      row.correct += pair.truth[there[i]] === id;
    }
  });
  const cell = (count, of) => `<td>${of ? percent(count / of) : "–"}</td>`;
  $("#figures tbody").innerHTML = [...rows].map(([key, row]) => {
    const name = key === "all" ? "All classes" : swatch(key) + escape(className(key)), share = row.pixels ? (100 * row.closed) / row.pixels : 0;
    return `<tr data-class="${key}"><td><button type="button" aria-pressed="${state.filter === key}">${name}</button></td><td>${row.pixels}</td>` +
      `<td class="meter"><i style="--share:${share}% 100%"></i></td>` +
      cell(row.closed, row.pixels) + cell(row.correct, row.known) + cell(row.hit.size, pair.size.target) + "</tr>";
  }).join("");
  $("#wrong").textContent = pair.truth ? ", or turned around in another class" : "";
  const drawn = state.level === "features" ? `${pair.scale.features.length} principal directions of the ${pair.channels} channels of features, at 8 bits each`
    : `the logarithms of ${meta.classes.length} probabilities, at 16 bits each`;
  $("#exact").textContent = "Cycles, verdicts and the table are those that training finds, for whole images at the size of the test. The heat is drawn " +
    `from ${drawn}: no value of this pair is further than ${pair.error[state.level].toPrecision(1)} from the exact similarity.`;
}

// ---------------------------------------------------------------- what changes

function refresh() { // another pair, level or share
  pair = load(state.pair);
  sides.forEach((side) => {
    const figure = $(`#${side}`), { name, width, height, ratio, picture } = pair[side];
    figure.style.setProperty("--ratio", ratio);
    Object.assign(figure.querySelector(".name"), { textContent: name, title: name });
    if (figure.querySelector("img").src !== picture) figure.querySelector("img").src = picture;
    figure.querySelectorAll("canvas").forEach((canvas) => Object.assign(canvas, { width, height }));
  });
  $("#pair").value = state.pair;
  $(`[name=level][value=${state.level}]`).checked = $(`[name=alpha][value="${state.alpha}"]`).checked = true;
  showFigures();
  return draw();
}

function choose(side, index, pinned) {
  Object.assign(state, { chosen: { side, index }, pinned });
  const cycle = draw();
  if (pinned) remember();
  return cycle;
}

function release() {
  Object.assign(state, { pinned: false, chosen: null });
  draw();
  remember();
}

// The address names what is pinned, so that it can be sent to someone who has the file.
function remember() {
  const parts = [`pair=${state.pair}`, `level=${state.level}`, `alpha=${meta.alphas[state.alpha]}`];
  if (state.pinned) parts.push(`${state.chosen.side}=${state.chosen.index}`);
  if (state.filter !== null) parts.push(`class=${state.filter}`);
  history.replaceState(null, "", "#" + parts.join("&"));
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1)), number = (name) => (given.has(name) ? Math.floor(+given.get(name)) : -1);
  if (meta.pairs[number("pair")]) state.pair = number("pair");
  if (given.has("alpha") && meta.alphas.includes(+given.get("alpha"))) state.alpha = meta.alphas.indexOf(+given.get("alpha"));
  if (["features", "classes"].includes(given.get("level"))) state.level = given.get("level");
  state.filter = given.get("class") === "all" ? "all" : meta.classes[number("class")] ? number("class") : null;
  const side = sides.find((name) => number(name) >= 0 && number(name) < load(state.pair).size[name]);
  Object.assign(state, { chosen: side ? { side, index: number(side) } : null, pinned: !!side });
  refresh();
}

// ---------------------------------------------------------------- events

function pixelAt(event, side) {
  const box = $(`#${side} .stage`).getBoundingClientRect(), { width, height } = pair[side];
  const at = (x, size, count) => Math.max(0, Math.min(count - 1, Math.floor((x / size) * count)));
  return at(event.clientY - box.top, box.height, height) * width + at(event.clientX - box.left, box.width, width);
}

let waiting = null;
for (const side of sides) {
  const canvas = $(`#${side} .cells`);
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || state.pinned) return;
    if (!waiting) requestAnimationFrame(() => {
      const next = waiting;
      waiting = null;
      if (next && !state.pinned && !(state.chosen?.side === next.side && state.chosen.index === next.index)) choose(next.side, next.index, false);
    });
    waiting = { side, index: pixelAt(event, side) };
  });
  canvas.addEventListener("pointerleave", () => {
    waiting = null;
    if (!state.pinned && state.chosen && document.activeElement !== canvas) release();
  });
  canvas.addEventListener("blur", () => !state.pinned && state.chosen && release());
  canvas.addEventListener("click", (event) => {
    const index = pixelAt(event, side);
    if (state.pinned && state.chosen.side === side && state.chosen.index === index) release();
    else say(choose(side, index, true));
  });
  canvas.addEventListener("keydown", (event) => {
    const { width, height } = pair[side], jump = event.shiftKey ? 5 : 1, first = side === "source" ? example().index : follow(example()).turn;
    const index = state.chosen?.side === side ? state.chosen.index : first;
    const moves = { ArrowLeft: [-jump, 0], ArrowRight: [jump, 0], ArrowUp: [0, -jump], ArrowDown: [0, jump] };
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key], clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
      say(choose(side, clamp(Math.floor(index / width) + dy, height) * width + clamp((index % width) + dx, width), state.pinned));
    } else if (event.key === "Enter" || event.key === " ") {
      say(choose(side, index, !state.pinned));
      remember();
    } else return;
    event.preventDefault();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.chosen) release();
  else if (state.filter !== null) setFilter(null);
});
$("#pin").addEventListener("click", () => (state.pinned ? release() : choose(state.chosen.side, state.chosen.index, true)));
$("#controls").addEventListener("change", ({ target }) => {
  if (target.id === "opacity") return;
  if (target.id === "pair") Object.assign(state, { pair: +target.value, pinned: false, chosen: null });
  else state[target.name] = target.name === "alpha" ? +target.value : target.value;
  refresh();
  remember();
});
$("#opacity").addEventListener("input", (event) => root.style.setProperty("--heat", event.target.value / 100));

function setFilter(filter) {
  Object.assign(state, { filter, pinned: false, chosen: null });
  for (const row of $("#figures tbody").rows) row.querySelector("button").setAttribute("aria-pressed", row.dataset.class === String(filter));
  draw();
  remember();
}
$("#figures").addEventListener("click", (event) => {
  const row = event.target.closest("button")?.closest("tr");
  if (!row) return;
  const key = row.dataset.class === "all" ? "all" : +row.dataset.class;
  setFilter(state.filter === key ? null : key);
});

// What a term means, beside it, for pointer, finger and key.
function explain({ target }) {
  const term = target.closest?.("[data-tip]"), tip = $("#tip");
  tip.hidden = !term;
  if (!term) return;
  tip.textContent = term.dataset.tip;
  const box = term.getBoundingClientRect(), below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, root.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - 6 - tip.offsetHeight}px`;
}
for (const kind of ["pointerover", "focusin", "click"]) document.addEventListener(kind, explain);

const dark = matchMedia("(prefers-color-scheme: dark)");
const themes = ["auto", "light", "dark"];
function setTheme(name) {
  root.dataset.chosen = name;
  root.dataset.theme = name === "auto" ? (dark.matches ? "dark" : "light") : name;
  $("#theme").textContent = `◐ ${name}`;
  $("#theme").setAttribute("aria-label", `Colours: ${name}`);
  if (pair) drawCells();
}
$("#theme").addEventListener("click", () => setTheme(themes[(themes.indexOf(root.dataset.chosen) + 1) % 3]));
dark.addEventListener("change", () => setTheme(root.dataset.chosen));
addEventListener("hashchange", recall);
new ResizeObserver(() => pair && drawWay(shown())).observe($("#views"));

// ---------------------------------------------------------------- start

setTheme("auto");
const { network, checkpoint, source, target } = meta.about;
$("#about").textContent = `${network} · ${checkpoint} · ${source} → ${target}`;
const file = (name) => escape(name.split("/").pop());
$("#pair").innerHTML = meta.pairs.map(([s, t], n) => `<option value="${n}">${n + 1}: ${file(s)} → ${file(t)}</option>`).join("");
const titles = (alpha) => (alpha === 0 ? "0, none" : alpha === meta.alpha ? `${alpha}, as trained` : `${alpha}`);
$("#alpha").innerHTML += meta.alphas.map((a, n) => `<label><input type="radio" name="alpha" value="${n}"><span>${titles(a)}</span></label>`).join("");
for (const bar of document.querySelectorAll(".bar i")) {
  const stops = [...Array(9).keys()].map((k) => Math.min(255, 32 * k)).map((n) => `rgb(${colors.slice(3 * n, 3 * n + 3)})`);
  bar.style.background = `linear-gradient(90deg, ${stops})`;
}
recall();
requestAnimationFrame(() => setTimeout(() => (root.dataset.ready = 1)));
