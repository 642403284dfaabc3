"use strict";
// State in, picture out: every event changes `state` and calls a function that draws.

const $ = (selector) => document.querySelector(selector);
const meta = JSON.parse($("#meta").textContent);
const sides = ["source", "target"];
const other = { source: "target", target: "source" };
const IGNORED = 255;
const colors = bytes(meta.colors);
const root = document.documentElement;

const state = {
  pair: 0,
  level: "features",
  alpha: meta.alpha,
  chosen: null, // {side, index}
  pinned: false,
  filter: null, // train id, "all", or null: no cells are marked
};
const loaded = []; // data of a pair, decoded when it is first looked at
let maps = null; // {source, target} as compared: association.js
let cycles = null; // {there, back, closed, done, exact}
let similar = {}; // {source, target}: similarities now drawn
let worker = null, restart = 0;

// ---------------------------------------------------------------- data

function bytes(base64) {
  const text = atob(base64), out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

function pairData() {
  if (loaded[state.pair]) return loaded[state.pair];
  const info = meta.pairs[state.pair];
  const types = { int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };
  const buffer = bytes($(`#pair-${state.pair}`).textContent).buffer;
  const get = (name) => info.places[name] && new types[info.places[name][0]](buffer, info.places[name][1], info.places[name][2]);
  const [sources, targets] = sides.map((side) => info[side].width * info[side].height);
  return (loaded[state.pair] = { info, get, sources, targets, labels: get("labels"), predicted: get("predicted"), truth: get("truth"), parts: {} });
}

// Source, target, and aggregated target: pixel after pixel, as float32.
function parts(data, level) {
  if (data.parts[level]) return data.parts[level];
  const count = data.sources + 2 * data.targets;
  let d, x;
  if (level === "features") {
    const values = data.get("values"), scale = data.get("scale"), direction = data.get("direction");
    d = data.info.dimensions;
    x = new Float32Array(count * d);
    for (let p = 0; p < scale.length; p++) {
      const step = scale[p], start = p * count;
      for (let n = 0, at = direction[p]; n < count; n++, at += d) x[at] += step * values[start + n];
    }
  } else {
    const logs = data.get("logs"), table = new Float32Array(65536);
    for (let h = 0x8000; h < 65536; h++) { // minus a number: logarithms of probabilities
      const exponent = (h >> 10) & 31, fraction = h & 1023;
      const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
      table[h] = Math.max(0, Math.exp(-size) - EPS);
    }
    table[0] = 1;
    d = logs.length / count;
    x = Float32Array.from(logs, (h) => table[h]);
  }
  const cut = [0, data.sources * d, (data.sources + data.targets) * d, count * d];
  return (data.parts[level] = { d, x: [0, 1, 2].map((k) => x.subarray(cut[k], cut[k + 1])) });
}

function buildMaps() {
  const data = pairData(), { d, x } = parts(data, state.level), alpha = state.alpha, ratio = data.get("ratio");
  const mixed = new Float32Array(x[1].length), features = state.level === "features";
  for (let j = 0, at = 0; j < data.targets; j++) {
    const weight = alpha * (features ? ratio[j] : 1);
    for (const end = at + d; at < end; at++) mixed[at] = (1 - alpha) * x[1][at] + weight * x[2][at];
  }
  const make = features ? directions : distributions;
  maps = { source: make(x[0], data.sources, d), target: make(mixed, data.targets, d) };
}

function isClosed(i, j, back) {
  const { labels } = pairData();
  return labels[i] !== IGNORED && labels[i] === labels[back] && maps.source.usable[i] === 1 && maps.target.usable[j] === 1;
}

function stored() {
  return meta.alphas.findIndex((alpha) => Math.abs(alpha - state.alpha) < 1e-6);
}

// The ways of all source pixels: those that came with the page, or found by a worker from now on.
function findCycles() {
  if (worker) worker.terminate();
  worker = null;
  clearTimeout(restart);
  const data = pairData(), place = stored();
  if (place >= 0) {
    const name = `${state.level} ${place}`;
    const [there, back, closed] = ["target", "source", "closed"].map((end) => data.get(`${name} ${end}`));
    cycles = { there: Int32Array.from(there), back: Int32Array.from(back), closed, done: 1, exact: true };
    return showFigures();
  }
  cycles = { there: new Int32Array(data.sources).fill(-1), back: new Int32Array(data.sources).fill(-1), closed: new Uint8Array(data.sources), done: 0, exact: false };
  showFigures();
  restart = setTimeout(() => startWorker(data), 120);
}

function startWorker(data) {
  const run = "onmessage = (e) => followAll(e.data.source, e.data.target, (there, back, done) => postMessage({there, back, done}), 120);";
  try {
    const url = URL.createObjectURL(new Blob([$("#association").textContent, run], { type: "text/javascript" }));
    worker = new Worker(url);
    URL.revokeObjectURL(url);
  } catch {
    cycles.unavailable = true; // a browser that starts no workers from files; hovering works all the same
    return showFigures();
  }
  worker.onmessage = ({ data: { there, back, done } }) => {
    const closed = there.map((j, i) => (j >= 0 && isClosed(i, j, back[i]) ? 1 : 0));
    cycles = { there, back, closed, done, exact: false };
    showFigures();
    drawCells();
  };
  worker.postMessage(maps);
}

// ---------------------------------------------------------------- one cycle

// From the chosen pixel to the most similar one of the other image, and back. Fills `similar`.
function follow({ side, index }) {
  const far = other[side];
  similar = { [far]: similarities(maps[side], index, maps[far], new Float32Array(maps[far].n)) };
  const turn = wayOf(side, index) ?? argmax(similar[far]);
  similar[side] = similarities(maps[far], turn, maps[side], new Float32Array(maps[side].n));
  const end = wayOf(far, turn) ?? argmax(similar[side]);
  return { side, far, start: index, turn, end, there: similar[far][turn], back: similar[side][end] };
}

// Where a stored or finished cycle leads from a pixel; undefined where none was followed.
function wayOf(side, index) {
  if (side === "source") return cycles.there[index] >= 0 ? cycles.there[index] : undefined;
  const at = cycles.there.indexOf(index);
  return at >= 0 ? cycles.back[at] : undefined;
}

// ---------------------------------------------------------------- drawing

function draw() {
  const cycle = state.chosen && follow(state.chosen);
  for (const side of sides) {
    const figure = $(`#${side}`);
    figure.querySelector(".stage").classList.toggle("showing-heat", !!cycle);
    figure.querySelector(".bar").hidden = !cycle;
    if (cycle) drawHeat(figure, similar[side]);
  }
  drawWay(cycle);
  drawCells();
  showCycle(cycle);
  return cycle;
}

function drawHeat(figure, values) {
  const canvas = figure.querySelector(".heat"), context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height), features = state.level === "features";
  // Divergences have no bound; e^-KL lies between 0 and 1.
  let low = features ? Infinity : 0, high = features ? -Infinity : 1;
  if (features) for (const v of values) (low = Math.min(low, v)), (high = Math.max(high, v));
  const scale = 255 / (high - low || 1);
  for (let n = 0; n < values.length; n++) {
    const level = Math.max(0, Math.min(255, Math.round(((features ? values[n] : Math.exp(values[n])) - low) * scale)));
    image.data[4 * n] = colors[3 * level];
    image.data[4 * n + 1] = colors[3 * level + 1];
    image.data[4 * n + 2] = colors[3 * level + 2];
    image.data[4 * n + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  figure.querySelector(".low").textContent = features ? `cosine ${signed(low, 2)}` : "e^−KL 0";
  figure.querySelector(".high").textContent = signed(high, features ? 2 : 0);
}

function center(side, index) {
  const { width, height } = meta.pairs[state.pair][side], views = $("#views").getBoundingClientRect();
  const stage = $(`#${side} .stage`).getBoundingClientRect();
  return [
    stage.left - views.left + (((index % width) + 0.5) / width) * stage.width,
    stage.top - views.top + ((Math.floor(index / width) + 0.5) / height) * stage.height,
  ];
}

function drawWay(cycle) {
  if (!cycle) return void $("#way").replaceChildren();
  const points = [center(cycle.side, cycle.start), center(cycle.far, cycle.turn), center(cycle.side, cycle.end)];
  // Two arcs, bent to different sides: one there, one back.
  const arc = ([x, y], [u, v]) => `M${x} ${y}Q${(x + u) / 2 + (v - y) * 0.16} ${(y + v) / 2 - (u - x) * 0.16} ${u} ${v}`;
  const there = arc(points[0], points[1]), back = arc(points[1], points[2]);
  const badge = ([x, y], n) => `<circle cx="${x}" cy="${y}" r="9"/><text x="${x}" y="${y}">${n}</text>`;
  const [x, y] = points[2], same = cycle.start === cycle.end;
  const ring = (r) => `<circle class="ring-under" cx="${x}" cy="${y}" r="${r}"/><circle class="ring" cx="${x}" cy="${y}" r="${r}"/>`;
  $("#way").innerHTML =
    `<path class="under" d="${there}"/><path class="under" d="${back}"/><path d="${there}"/><path class="back" d="${back}"/>` +
    (same ? ring(14) : badge(points[2], 3)) + badge(points[0], 1) + badge(points[1], 2);
}

// Cells of the cycles of the filtered class, while no single cycle is looked at.
function drawCells() {
  const data = pairData(), style = getComputedStyle(root);
  const fill = { closed: style.getPropertyValue("--closed"), open: style.getPropertyValue("--open") };
  const marks = { source: new Uint8Array(data.sources), target: new Uint8Array(data.targets) };
  const shown = state.filter !== null && !state.chosen;
  if (shown) {
    for (let i = 0; i < data.sources; i++) {
      if (data.labels[i] === IGNORED || cycles.there[i] < 0 || (state.filter !== "all" && data.labels[i] !== state.filter)) continue;
      marks.source[i] = cycles.closed[i] ? 1 : 2;
      const j = cycles.there[i];
      if (cycles.closed[i]) marks.target[j] = data.truth && data.truth[j] !== IGNORED && data.truth[j] !== data.labels[i] ? 2 : 1;
    }
  }
  for (const side of sides) {
    const canvas = $(`#${side} .cells`), context = canvas.getContext("2d"), { width } = data.info[side];
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.78;
    for (let n = 0; n < marks[side].length; n++) {
      if (!marks[side][n]) continue;
      context.fillStyle = marks[side][n] === 1 ? fill.closed : fill.open;
      context.fillRect(n % width, Math.floor(n / width), 1, 1);
    }
  }
}

// ---------------------------------------------------------------- words

const className = (id) => (id === IGNORED || id === undefined ? "unlabelled" : meta.classes[id].name);
const swatch = (id) => `<i class="swatch" style="background:${id < meta.classes.length ? meta.classes[id].color : "#000"}"></i>`;
const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const place = (side, index) => `${index % meta.pairs[state.pair][side].width}, ${Math.floor(index / meta.pairs[state.pair][side].width)}`;

function classAt(side, index) {
  const data = pairData();
  if (side === "source") return { id: data.labels[index], note: "source label" };
  const truth = data.truth ? `, label ${className(data.truth[index])}` : "";
  return { id: data.predicted[index], note: `target prediction${truth}` };
}

function showCycle(cycle) {
  const box = $("#cycle");
  if (!cycle) {
    const what = `<b>${state.filter === "all" ? "all classes" : escape(className(state.filter ?? IGNORED))}</b>`;
    const there = state.filter === "all" || pairData().labels.includes(state.filter);
    box.innerHTML = there ? `<span class="empty">Cells of the cycles of ${what} are marked. Hover or tap one to follow it; Esc ends this.</span>`
      : `<span class="empty">No pixel of this source image is labelled ${what}.</span>`;
    return;
  }
  const { side, far, start, turn, end } = cycle, features = state.level === "features";
  const step = (n, s, index) => {
    const { id, note } = classAt(s, index);
    return `<div class="step"><b>${n}</b><div>${swatch(id)}${escape(className(id))}<small>${note} at ${place(s, index)}</small></div></div>`;
  };
  const link = (value) => `<div class="link">→ <span>${features ? "cosine" : "KL"}</span> ${signed(features ? value : Math.max(0, -value), 3)}</div>`;
  const closed = verdict(cycle);
  box.innerHTML = step(1, side, start) + link(cycle.there) + step(2, far, turn) + link(cycle.back) + step(3, side, end) +
    `<span class="verdict ${closed ? "closed" : ""}">${verdictWord(cycle, closed)}</span>` +
    (state.pinned ? '<button type="button" class="quiet" id="release" aria-label="Pinned: release">Unpin</button>' : "");
}

// A cycle that starts in the source is closed if both ends have one label; from the target, if both have one prediction.
function verdict({ side, start, turn, end }) {
  if (side === "target") return pairData().predicted[start] === pairData().predicted[end];
  return cycles.exact ? cycles.closed[start] === 1 : isClosed(start, turn, end);
}

const verdictWord = ({ side }, closed) => (side === "source" ? (closed ? "✓ closed" : "✕ open") : closed ? "✓ same class predicted" : "✕ another class predicted");

let speaking = 0;
function say(cycle) {
  clearTimeout(speaking);
  if (!cycle) return;
  speaking = setTimeout(() => {
    const at = (side, index) => `${side} ${place(side, index)}, ${className(classAt(side, index).id)}`;
    const { side, far, start, turn, end } = cycle;
    $("#said").textContent = `From ${at(side, start)}, to ${at(far, turn)}, back to ${at(side, end)}: ${verdictWord(cycle, verdict(cycle)).slice(2)}.`;
  }, 250);
}

// Counts over the cycles known so far: of each class, and of all.
function figures() {
  const data = pairData(), blank = () => ({ pixels: 0, followed: 0, closed: 0, known: 0, correct: 0, hit: new Set() });
  const rows = new Map([["all", blank()]]);
  for (let i = 0; i < data.sources; i++) {
    const id = data.labels[i];
    if (id === IGNORED) continue;
    if (!rows.has(id)) rows.set(id, blank());
    for (const row of [rows.get(id), rows.get("all")]) {
      row.pixels++;
      if (cycles.there[i] < 0) continue;
      row.followed++;
      if (!cycles.closed[i]) continue;
      row.closed++;
      row.hit.add(cycles.there[i]);
      if (!data.truth || data.truth[cycles.there[i]] === IGNORED) continue;
      row.known++;
      if (data.truth[cycles.there[i]] === id) row.correct++;
    }
  }
  return rows;
}

function showFigures() {
  const data = pairData(), rows = figures(), order = [...rows.keys()].filter((key) => key !== "all").sort((a, b) => a - b);
  const cell = (count, of) => (of ? percent(count / of) : '<span class="none">–</span>');
  $("#figures tbody").innerHTML = ["all", ...order].map((key) => {
    const row = rows.get(key), name = key === "all" ? "All classes" : swatch(key) + escape(meta.classes[key].name);
    const share = row.followed ? row.closed / row.followed : 0;
    const correct = data.truth ? cell(row.correct, row.known) : `<span class="none">${key === "all" ? "unknown" : "–"}</span>`;
    return `<tr class="${key === "all" ? "total" : ""}" data-class="${key}"><td><button type="button" aria-pressed="${state.filter === key}">${name}</button></td>` +
      `<td>${row.pixels}</td><td class="meter"><i style="--share:${percent(share).replace(" ", "")} 100%"></i></td>` +
      `<td>${cell(row.closed, row.followed)}</td><td>${correct}</td><td>${cell(row.hit.size, data.targets)}</td></tr>`;
  }).join("");
  const basis = $("#basis");
  basis.classList.toggle("exact", cycles.exact);
  basis.textContent = cycles.exact ? "exact cycles" : cycles.unavailable ? "figures need a worker, which this browser refuses"
    : cycles.done < 1 ? `computed here: ${Math.floor(100 * cycles.done)} %` : "computed here";
  root.dataset.done = cycles.done; // of all cycles, 0 to 1
}

function showNotes() {
  const { info, truth } = pairData(), unit = state.level === "features" ? "" : " nats";
  const stops = meta.alphas.map((a) => a.toFixed(2).replace(/\.?0+$/, "")).join(", ");
  const reduction = state.level === "features"
    ? `The ${info.channels} channels of the features are reduced to ${info.dimensions} principal directions in ${info.planes} bytes a pixel, ` +
      `which hold ${(100 * info.kept).toFixed(2)} % of their energy.`
    : `The probabilities of ${meta.classes.length} classes are stored as logarithms of 16 bits.`;
  $("#reduction").textContent = `${reduction} Beside the exact computation, over all source pixels of this pair, the page finds:`;
  $("#exactness tbody").innerHTML = info.exactness.filter((e) => e.level === state.level)
    .map((e) => `<tr><td>${e.alpha.toFixed(2)}</td><td>${percent(e.target_index)}</td><td>${percent(e.closed)}</td><td>${e.error.toPrecision(2)}${unit}</td></tr>`).join("");
  $("#which").textContent = `Cycles and figures at α = ${stops} are the exact ones, stored in this file. Heat maps, other α, and ways from target ` +
    "pixels that no cycle visits are computed here from the reduced maps. The maps are those of whole images, at the size of the test.";
  const dot = (name) => `<i class="dot" style="background:var(--${name})"></i>`;
  $("#legend").innerHTML = `Choose a class to mark its cells: ${dot("closed")}closed, and where closed cycles turn around; ${dot("open")}open` +
    `${truth ? ", or turned around in another class" : ""}. Coverage: target pixels on closed cycles. ` +
    (truth ? "Correct: closed cycles that turn around in their own class." : "Correct is unknown without target labels (--with-target-labels).");
}

// ---------------------------------------------------------------- what changes

function refresh() { // another pair, level or alpha
  $("#alpha").value = state.alpha;
  $("#alpha-value").textContent = `α = ${state.alpha.toFixed(2)}`;
  buildMaps();
  findCycles();
  return draw();
}

function showPair() {
  const info = meta.pairs[state.pair];
  sides.forEach((side, n) => {
    const figure = $(`#${side}`), { name, width, height, ratio } = info[side];
    figure.style.setProperty("--ratio", ratio);
    figure.querySelector(".name").textContent = name;
    figure.querySelector(".name").title = name;
    figure.querySelector("img").src = info.pictures[n];
    figure.querySelectorAll("canvas").forEach((canvas) => Object.assign(canvas, { width, height }));
  });
  $("#pair").value = state.pair;
}

function choose(side, index, pinned) {
  state.chosen = { side, index };
  state.pinned = pinned;
  const cycle = draw();
  if (pinned) remember();
  return cycle;
}

function release() {
  const focused = document.activeElement?.id === "release";
  state.pinned = false;
  if (state.filter !== null) state.chosen = null;
  draw();
  if (focused) $("#source .cells").focus();
  remember();
}

// The address names what is pinned, so that it can be sent to someone who has the file.
function remember() {
  const parts = [`pair=${state.pair}`, `level=${state.level}`, `alpha=${state.alpha}`];
  if (state.pinned) parts.push(`${state.chosen.side}=${state.chosen.index}`);
  if (state.filter !== null) parts.push(`class=${state.filter}`);
  history.replaceState(null, "", "#" + parts.join("&"));
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name, most, value) => (given.has(name) && +given.get(name) >= 0 && +given.get(name) <= most ? +given.get(name) : value);
  state.pair = Math.floor(number("pair", meta.pairs.length - 1, state.pair));
  state.alpha = number("alpha", 1, state.alpha);
  if (["features", "classes"].includes(given.get("level"))) state.level = given.get("level");
  const filter = given.get("class");
  state.filter = filter === "all" ? "all" : filter && meta.classes[filter] ? +filter : null;
  if (["light", "dark"].includes(given.get("theme"))) setTheme(given.get("theme"));
  const data = pairData();
  state.chosen = null;
  for (const side of sides) {
    if (given.has(side)) state.chosen = { side, index: Math.floor(number(side, data[`${side}s`] - 1, 0)) };
  }
  state.pinned = !!state.chosen;
  if (!state.chosen && state.filter === null) state.chosen = { side: "source", index: firstLook(data) };
  $(`input[name=level][value=${state.level}]`).checked = true;
  showPair();
  showNotes();
  return refresh();
}

// A closed cycle near the middle, so that the page explains itself before anything is touched.
function firstLook(data) {
  const { width, height } = data.info.source, closed = data.get(`${state.level} ${Math.max(0, stored())} closed`);
  let best = 0, least = Infinity;
  for (let i = 0; i < data.sources; i++) {
    const distance = ((i % width) - width / 2) ** 2 + (Math.floor(i / width) - height * 0.6) ** 2 + (closed[i] ? 0 : 1e9);
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

// ---------------------------------------------------------------- events

let waiting = null;
const durations = [];

function timed(action) {
  const start = performance.now();
  action();
  durations.push(performance.now() - start);
  root.dataset.hoverCount = durations.length;
  root.dataset.hoverWorst = Math.max(...durations).toFixed(2);
  root.dataset.hoverMedian = durations.slice().sort((a, b) => a - b)[durations.length >> 1].toFixed(2);
  if (durations.length > 500) durations.shift();
}

function pixelAt(event, side) {
  const box = $(`#${side} .stage`).getBoundingClientRect(), { width, height } = meta.pairs[state.pair][side];
  const at = (x, size, count) => Math.max(0, Math.min(count - 1, Math.floor((x / size) * count)));
  return at(event.clientY - box.top, box.height, height) * width + at(event.clientX - box.left, box.width, width);
}

for (const side of sides) {
  const canvas = $(`#${side} .cells`);
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || state.pinned) return;
    const index = pixelAt(event, side);
    if (!waiting) requestAnimationFrame(() => {
      const next = waiting;
      waiting = null;
      if (!state.pinned && !(state.chosen?.side === next.side && state.chosen.index === next.index)) timed(() => choose(next.side, next.index, false));
    });
    waiting = { side, index };
  });
  canvas.addEventListener("pointerleave", () => {
    if (state.filter === null || state.pinned || document.activeElement === canvas) return;
    waiting = null;
    state.chosen = null;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    const index = pixelAt(event, side), again = state.pinned && state.chosen.side === side && state.chosen.index === index;
    if (again) release();
    else timed(() => say(choose(side, index, true)));
  });
  canvas.addEventListener("keydown", (event) => {
    const { width, height } = meta.pairs[state.pair][side], jump = event.shiftKey ? 5 : 1;
    const index = state.chosen?.side === side ? state.chosen.index : Math.floor(height / 2) * width + Math.floor(width / 2);
    const moves = { ArrowLeft: [-jump, 0], ArrowRight: [jump, 0], ArrowUp: [0, -jump], ArrowDown: [0, jump] };
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key], clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
      const next = clamp(Math.floor(index / width) + dy, height) * width + clamp((index % width) + dx, width);
      timed(() => say(choose(side, next, state.pinned)));
    } else if (event.key === "Enter" || event.key === " ") {
      say(choose(side, index, !state.pinned));
      remember();
    } else return;
    event.preventDefault();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && (state.pinned || state.filter !== null)) {
    if (!state.pinned) setFilter(null);
    else release();
  }
});
$("#cycle").addEventListener("click", (event) => event.target.id === "release" && release());
$("#pair").addEventListener("change", (event) => {
  state.pair = +event.target.value;
  Object.assign(state, { pinned: false, chosen: state.filter === null ? { side: "source", index: firstLook(pairData()) } : null });
  showPair();
  showNotes();
  refresh();
  remember();
});
$("#controls").addEventListener("change", (event) => {
  if (event.target.name !== "level") return;
  state.level = event.target.value;
  showNotes();
  refresh();
  remember();
});
$("#alpha").addEventListener("input", (event) => {
  const near = meta.alphas.find((alpha) => Math.abs(alpha - event.target.value) < 0.005);
  state.alpha = near ?? +event.target.value;
  refresh();
});
$("#alpha").addEventListener("change", remember);

function setFilter(filter) {
  Object.assign(state, { filter, pinned: false });
  if (filter !== null) state.chosen = null;
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

const dark = matchMedia("(prefers-color-scheme: dark)");
const themes = ["auto", "light", "dark"];
let theme = "auto";
function setTheme(name) {
  theme = name;
  root.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  $("#theme").textContent = `◐ ${theme}`;
  $("#theme").setAttribute("aria-label", `Colours: ${theme}`);
}
const recolored = (name) => (setTheme(name), drawCells());
$("#theme").addEventListener("click", () => recolored(themes[(themes.indexOf(theme) + 1) % 3]));
dark.addEventListener("change", () => recolored(theme));
addEventListener("hashchange", recall);
new ResizeObserver(() => drawWay(state.chosen && follow(state.chosen))).observe($("#views"));

// ---------------------------------------------------------------- start

setTheme("auto");
$("#about").textContent = `${meta.about.network} · ${meta.about.checkpoint} · ${meta.about.source} → ${meta.about.target}`;
$("#pair").innerHTML = meta.pairs.map((pair, n) => `<option value="${n}">${n + 1}: ${escape(pair.source.name.split("/").pop())} → ${escape(pair.target.name.split("/").pop())}</option>`).join("");
$("#stops").innerHTML = meta.alphas.map((alpha) => `<option value="${alpha}"></option>`).join("");
for (const bar of document.querySelectorAll(".bar i")) {
  const stops = [...Array(9).keys()].map((k) => Math.min(255, 32 * k)).map((n) => `rgb(${colors.slice(3 * n, 3 * n + 3)})`);
  bar.style.background = `linear-gradient(90deg, ${stops})`;
}
recall();
root.dataset.ready = performance.now().toFixed(1);
requestAnimationFrame(() => setTimeout(() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  root.dataset.firstPaint = (paint ? paint.startTime : performance.now()).toFixed(1);
}));
