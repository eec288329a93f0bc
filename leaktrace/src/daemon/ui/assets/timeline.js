// The course of a process's memory: a chart, a legend that is made of buttons, and a line that reads the chart out.

import { aborted, get } from "./api.js";
import { choice, empty, failure, h, replace, setAttribute, setText, svg } from "./dom.js";
import { bytes, moment, NONE } from "./text.js";
import uPlot from "./uplot.js";

const EVERY = 5000;
const RANGES = [
  ["900", "15 min"],
  ["3600", "1 h"],
  ["21600", "6 h"],
  ["86400", "24 h"],
];
const SERIES = [
  { key: "rss", label: "RSS", color: "--muted", dash: [] },
  { key: "anonymous", label: "Anonymous", color: "--info", dash: [] },
  { key: "swap", label: "Swap", color: "--edge", dash: [2, 3] },
  { key: "tracked", label: "Tracked heap", color: "--rising", dash: [] },
  { key: "go_heap", label: "Go heap", color: "--violet", dash: [8, 3] },
];

const two = (n) => String(n).padStart(2, "0");

function sample(series) {
  const line = svg("line", { x1: "0", x2: "14", y1: "4", y2: "4", "stroke-width": "2", "stroke-dasharray": series.dash.join(" ") || "none" });
  line.style.stroke = `var(${series.color})`;
  return svg("svg", { viewBox: "0 0 14 8", "aria-hidden": "true" }, line);
}

/** A card with the timeline of `pid`. */
export function timeline(pid, parameters, remember) {
  let range = RANGES.some(([value]) => value === parameters.get("range")) ? parameters.get("range") : "3600";
  const hidden = new Set();
  let data = null;
  let plot = null;
  let timer = null;
  const ended = new AbortController();

  const legend = h("div", { class: "legend", role: "group", "aria-label": "Lines of the chart" });
  const reading = h("p", { class: "reading" });
  const chart = h("div", { class: "chart", role: "img" });
  const element = h(
    "section",
    { class: "card", "aria-labelledby": "timeline-title" },
    h(
      "div",
      { class: "card-head" },
      h("h2", { id: "timeline-title" }, "Memory over time"),
      legend,
      choice("Time shown", RANGES, range, (value) => {
        range = value;
        remember({ range: value === "3600" ? null : value });
        refresh();
      }),
    ),
    h("div", { class: "card-body" }, chart, reading),
  );

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const used = () => SERIES.filter((series) => data[series.key].some((value) => value != null && value > 0));
  const seconds = (time) => time / 1e9;

  function columns(series) {
    return [data.time.map(seconds), ...series.map(({ key }) => data[key])];
  }

  /** Collections as ticks at the foot of the chart; more than there are pixels for are one. */
  function drawCollections(u) {
    const context = u.ctx;
    const { left, top, width, height } = u.bbox;
    const length = 10 * devicePixelRatio;
    context.save();
    context.fillStyle = style("--violet");
    let last = -Infinity;
    for (const collection of data.collections) {
      if (!collection.end) continue;
      const x = Math.round(u.valToPos(seconds(collection.end), "x", true));
      if (x < left || x > left + width || x - last < 2) continue;
      last = x;
      context.fillRect(x, top + height - length, Math.max(1, devicePixelRatio), length);
    }
    context.restore();
  }

  function read(at) {
    const series = used();
    if (at == null) {
      const words = series.map(({ key, label }) => {
        const known = data[key].filter((value) => value != null);
        return `${label} ${bytes(known[0])} → ${bytes(known.at(-1))}`;
      });
      const collections = data.collections.length;
      if (collections) words.push(`${collections} collections (ticks at the foot)`);
      return words.join(" · ");
    }
    const words = series.map(({ key, label }) => `${label} ${data[key][at] == null ? NONE : bytes(data[key][at])}`);
    if (data.goroutines[at] != null) words.push(`${data.goroutines[at]} goroutines`);
    return `${moment(data.time[at])}: ${words.join(" · ")}`;
  }

  function draw() {
    if (!data) return;
    const series = used();
    replace(
      legend,
      series.map((one) =>
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(!hidden.has(one.key)),
            onclick: (event) => {
              if (!hidden.delete(one.key)) hidden.add(one.key);
              setAttribute(event.currentTarget, "aria-pressed", String(!hidden.has(one.key)));
              build();
            },
          },
          sample(one),
          one.label,
        ),
      ),
    );
    build();
  }

  const height = () => (matchMedia("(min-width: 981px)").matches ? 300 : 220);

  function build() {
    plot?.destroy();
    plot = null;
    if (data.time.length < 2) {
      replace(chart, empty("No history yet", "The timeline begins when the daemon has seen this process twice. It fills by itself."));
      setText(reading, "");
      return;
    }
    replace(chart);
    const series = used();
    const axis = { stroke: style("--muted"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false }, font: `11px ${style("--sans")}` };
    plot = new uPlot(
      {
        width: Math.max(200, chart.clientWidth),
        height: height(),
        padding: [8, 8, 0, 0],
        legend: { show: false },
        cursor: { points: { size: 6 }, drag: { x: false, y: false } },
        scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(high * 1.05, 1)] } },
        axes: [
          {
            ...axis,
            size: 28,
            values: (_, ticks) =>
              ticks.map((tick) => {
                const at = new Date(tick * 1000);
                return `${two(at.getHours())}:${two(at.getMinutes())}${ticks.length > 1 && ticks[1] - ticks[0] < 60 ? `:${two(at.getSeconds())}` : ""}`;
              }),
          },
          { ...axis, size: 72, values: (_, ticks) => ticks.map(bytes), splits: binarySplits },
        ],
        series: [
          {},
          ...series.map((one) => ({
            label: one.label,
            show: !hidden.has(one.key),
            stroke: style(one.color),
            width: 1.5,
            dash: one.dash,
            points: { show: false },
            spanGaps: false,
          })),
        ],
        hooks: {
          draw: [drawCollections],
          setCursor: [(u) => setText(reading, read(u.cursor.idx ?? null))],
        },
      },
      columns(series),
      chart,
    );
    setText(reading, read(null));
    setAttribute(chart, "aria-label", `Memory from ${moment(data.time[0])} to ${moment(data.time.at(-1))}: ${read(null)}`);
  }

  /** Ticks at 1, 2 or 5 times a power of two times ten: round in the unit that is shown. */
  function binarySplits(_u, _axis, low, high) {
    const rough = (high - low) / 4;
    const unit = 1024 ** Math.max(0, Math.floor(Math.log(Math.max(rough, 1)) / Math.log(1024)));
    const scaled = rough / unit;
    const power = 10 ** Math.floor(Math.log10(Math.max(scaled, 1)));
    const step = ([1, 2, 5, 10].find((factor) => factor * power >= scaled) ?? 10) * power * unit;
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high && ticks.length < 20; tick += step) ticks.push(tick);
    return ticks;
  }

  async function refresh() {
    clearTimeout(timer);
    if (!document.hidden) {
      const until = BigInt(Date.now()) * 1_000_000n;
      try {
        const answer = await get(`/processes/${pid}/timeline`, { since: String(until - BigInt(range) * 1_000_000_000n), until: String(until) }, { signal: ended.signal });
        const before = data && used().map((one) => one.key).join();
        data = answer;
        const reads = plot && plot.cursor.idx != null && plot.cursor.left >= 0;
        if (plot && before === used().map((one) => one.key).join() && data.time.length >= 2) {
          plot.setData(columns(used()));
          if (!reads) setText(reading, read(null));
        } else draw();
      } catch (error) {
        if (aborted(error)) return;
        if (!data) replace(chart, failure(error, refresh));
      }
    }
    if (!ended.signal.aborted) timer = setTimeout(refresh, EVERY);
  }

  const sized = new ResizeObserver(() => plot && plot.width !== chart.clientWidth && plot.setSize({ width: Math.max(200, chart.clientWidth), height: height() }));
  sized.observe(chart);
  const themed = () => data && build();
  document.addEventListener("themechange", themed);
  refresh();
  return {
    element,
    close: () => {
      ended.abort();
      clearTimeout(timer);
      sized.disconnect();
      document.removeEventListener("themechange", themed);
      plot?.destroy();
    },
  };
}

