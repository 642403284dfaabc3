// Values under the pointer, a finger or the arrow keys; without this script the plots are there all the same.
"use strict";
for (const plot of document.querySelectorAll(".plot")) {
  const data = JSON.parse(plot.querySelector("script").textContent);
  const svg = plot.querySelector("svg"), cursor = plot.querySelector(".cursor"), output = plot.querySelector("output");
  const steps = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const [first, last] = data.x;
  let at = -1;
  const nearest = (list, x) => list.reduce((best, v, k) => (Math.abs(v - x) < Math.abs(list[best] - x) ? k : best), 0);
  const show = (k) => {
    at = Math.max(0, Math.min(steps.length - 1, k));
    const step = steps[at], x = data.left + ((step - first) / (last - first || 1)) * (data.right - data.left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    output.textContent = `${Math.round(step)}: `;
    data.lines.forEach((line, n) => {
      const i = nearest(line.x, step), value = line.y[i] === null ? "not finite" : String(Number(line.y[i].toPrecision(4)));
      const spread = line.std && line.std[i] !== null ? ` ± ${Number(line.std[i].toPrecision(2))}` : "";
      const name = document.createElement("span");
      name.className = `run${line.run}`;
      name.textContent = line.name;
      output.append(n ? ", " : "", name, ` ${value}${spread}`);
    });
  };
  const hide = () => {
    at = -1;
    cursor.setAttribute("visibility", "hidden");
    output.textContent = "";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    show(nearest(steps, first + ((x - data.left) / (data.right - data.left)) * (last - first)));
  });
  svg.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) {
      event.preventDefault();
      show(at < 0 ? (move > 0 ? 0 : steps.length - 1) : at + move);
    } else if (event.key === "Escape") hide();
  });
}
