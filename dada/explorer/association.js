"use strict";
// What is most similar to what. The page uses this for the pixel under the pointer, a worker for all pixels.
// A map has n pixels of d numbers, pixel after pixel. Similarity of row i and column j: rows[i] . columns[j] + constant[i].

const EPS = 1e-10;

function directions(x, n, d) {
  const rows = new Float32Array(x.length), usable = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    let square = 0;
    for (let c = i * d; c < (i + 1) * d; c++) square += x[c] * x[c];
    usable[i] = square > 0 ? 1 : 0;
    const unit = square > 0 ? 1 / Math.sqrt(square) : 0;
    for (let c = i * d; c < (i + 1) * d; c++) rows[c] = x[c] * unit;
  }
  return { n, d, rows, columns: rows, constant: new Float32Array(n), usable };
}

function distributions(p, n, d) {
  const columns = new Float32Array(p.length), constant = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let c = i * d; c < (i + 1) * d; c++) {
      columns[c] = Math.log(p[c] + EPS);
      sum += p[c] * columns[c];
    }
    constant[i] = -sum;
  }
  return { n, d, rows: p, columns, constant, usable: new Uint8Array(n).fill(1) };
}

function similarities(from, i, to, out) {
  const { d } = from, x = from.rows, y = to.columns, start = i * d, whole = d - (d % 4), constant = from.constant[i];
  for (let j = 0, at = 0; j < to.n; j++, at += d) {
    let a = 0, b = 0, e = 0, f = 0, c = 0;
    for (; c < whole; c += 4) {
      a += x[start + c] * y[at + c];
      b += x[start + c + 1] * y[at + c + 1];
      e += x[start + c + 2] * y[at + c + 2];
      f += x[start + c + 3] * y[at + c + 3];
    }
    for (; c < d; c++) a += x[start + c] * y[at + c];
    out[j] = a + b + (e + f) + constant;
  }
  return out;
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

// Every source pixel's way, in an order in which the first ones are spread over the image: figures are estimates soon.
// `report(target, source, done)` gets the indices so far, -1 where not yet known, every `pause` ms.
function followAll(source, target, report, pause) {
  const there = new Int32Array(source.n).fill(-1), back = new Int32Array(source.n).fill(-1);
  const backFrom = new Int32Array(target.n).fill(-1);
  const toTarget = new Float32Array(target.n), toSource = new Float32Array(source.n);
  const divides = (a, b) => (b ? divides(b, a % b) : a);
  let step = Math.max(1, Math.round(source.n * 0.618));
  while (divides(step, source.n) > 1) step++;
  let last = Date.now();
  for (let k = 0; k < source.n; k++) {
    const i = (k * step) % source.n, j = argmax(similarities(source, i, target, toTarget));
    if (backFrom[j] < 0) backFrom[j] = argmax(similarities(target, j, source, toSource));
    there[i] = j;
    back[i] = backFrom[j];
    if (Date.now() - last > pause) {
      report(there, back, (k + 1) / source.n);
      last = Date.now();
    }
  }
  report(there, back, 1);
}
