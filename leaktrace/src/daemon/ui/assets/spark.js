// Sparklines: one polyline each, drawn anew only when its numbers changed.

import { svg } from "./dom.js";

const WIDTH = 96;
const HEIGHT = 20;

/** An empty sparkline. */
export function spark() {
  const line = svg("polyline", { class: "spark-line", "vector-effect": "non-scaling-stroke" });
  const area = svg("polygon", { class: "spark-area" });
  const root = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, area, line);
  return { root, line, area, drawn: "" };
}

/** Draws values, oldest first. `rising` chooses the colour. */
export function drawSpark(target, values, rising, label) {
  const key = `${rising}|${values.join()}`;
  if (target.drawn === key) return;
  target.drawn = key;
  target.root.setAttribute("aria-label", label);
  target.root.setAttribute("class", `spark ${rising ? "rising" : ""}`);
  if (values.length < 2) {
    target.line.setAttribute("points", "");
    target.area.setAttribute("points", "");
    return;
  }
  const most = Math.max(...values);
  const least = Math.min(...values);
  // A change below a hundredth of the size is drawn as small as it is, not blown up to the full height.
  const span = Math.max(most - least, most * 0.01, 1);
  const points = values
    .map((value, at) => `${((at * WIDTH) / (values.length - 1)).toFixed(1)},${(HEIGHT - 2 - ((value - least) / span) * (HEIGHT - 4)).toFixed(1)}`)
    .join(" ");
  target.line.setAttribute("points", points);
  target.area.setAttribute("points", `0,${HEIGHT} ${points} ${WIDTH},${HEIGHT}`);
}
