// The flame graph: the library paints the rectangles, this module tells it where to look and gives it a keyboard.

import { FlameChartContainer, FlameChartPlugin } from "./flame-chart.js";
import { h, setText } from "./dom.js";
import { family, frameNames, hash, layOut } from "./tree.js";
import { percent, place } from "./text.js";

const BLOCK = 18;
const MAX_VIEW = 620;
const HUES = [8, 24, 38, 52, 78, 140, 172, 196, 214, 236, 262, 290, 322, 344];

/** Colours of the theme in use. */
function palette() {
  const dark = globalThis.leaktraceTheme?.current === "dark";
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    background: read("--surface"),
    text: read("--flame-text"),
    root: dark ? "#2b3742" : "#d5dde4",
    faded: dark ? "#232c34" : "#e4e8ec",
    found: dark ? "#9a5f00" : "#ffc24d",
    of: (seed) => `hsl(${HUES[seed % HUES.length]} ${dark ? "34% 30%" : "62% 80%"})`,
    side: { grew: dark ? [18, "58%", 24, 16] : [18, "82%", 88, -22], shrank: dark ? [208, "50%", 24, 16] : [208, "70%", 88, -22] },
  };
}

/** A flame graph in `options.element`; `write` puts amounts in words. */
export function flameGraph({ label, write }) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true");
  const marker = h("div", { class: "flame-focus", "aria-hidden": "true", hidden: true });
  const spacer = h("div", {});
  const view = h(
    "div",
    { class: "flame", tabindex: "0", role: "application", "aria-roledescription": "flame graph", "aria-label": label, "aria-describedby": "flame-help", "data-flame": "" },
    h("div", { class: "stick" }, canvas, marker),
    spacer,
  );
  const name = h("span", { class: "name hostile" });
  const where = h("span", { class: "where hostile" });
  const amount = h("span", { class: "amount" });
  const share = h("span", { class: "share" });
  const detail = h("div", { class: "flame-detail", "aria-live": "polite", "aria-atomic": "true" }, name, amount, where, share);
  const element = h(
    "div",
    {},
    h("p", { id: "flame-help", class: "visually-hidden" }, "Arrow keys move between frames, Enter zooms into one, Escape zooms out."),
    detail,
    view,
  );

  let stacks = null;
  let names = [];
  let families = [];
  let side = "all";
  let tree = null;
  let chart = null;
  let plugin = null;
  let zoomed = null;
  let selected = null;
  let needle = "";
  let colors = palette();
  let matches = null;

  function amounts(node) {
    const { own, total } = stacks.nodes[node.id];
    return { own, total };
  }

  function tell(node) {
    if (!node) return;
    const frame = node.id === 0 ? null : stacks.frames[stacks.nodes[node.id].frame];
    const { own, total } = amounts(node);
    setText(name, node.name);
    setText(where, node.id === 0 ? `${tree.shown} frames` : place(frame) || "source unknown");
    setText(amount, side === "all" ? write(total) : `${side === "grew" ? "grew" : "shrank"} ${write(node.duration)}, net ${write(total)}`);
    const self = own !== 0 && node.id !== 0 ? `, itself ${write(own)}` : "";
    setText(share, `${percent(tree.root.duration ? node.duration / tree.root.duration : 0)} of all${self}`);
  }

  function colorOf(at) {
    if (at === 0) return colors.root;
    const frame = stacks.nodes[at].frame;
    if (needle) return matches[frame] ? colors.found : colors.faded;
    if (side === "all") return colors.of(families[frame]);
    const [hue, saturation, base, spread] = colors.side[side];
    const { own, total } = stacks.nodes[at];
    const part = Math.round(Math.min(1, Math.abs(total || own) / (Math.abs(stacks.nodes[0].total) || 1)) * 4) / 4;
    return `hsl(${hue} ${saturation} ${Math.round(base + spread * part)}%)`;
  }

  const nameOf = (at) => (at === 0 ? "all" : (names[stacks.nodes[at].frame] ?? "(unknown)"));

  function settings() {
    return {
      options: { tooltip: onHover },
      styles: {
        main: { blockHeight: BLOCK, blockPaddingLeftRight: 5, backgroundColor: colors.background, font: `11px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`, fontColor: colors.text },
        timeGrid: { color: "transparent" },
      },
    };
  }

  function viewHeight() {
    return Math.min(MAX_VIEW, tree.rows * (BLOCK + 1) + 2);
  }

  function draw() {
    const keep = zoomed?.id ?? 0;
    const keepSelected = selected?.id ?? 0;
    tree = layOut(stacks, side, colorOf, nameOf);
    const width = Math.max(160, view.clientWidth);
    if (!chart) {
      canvas.width = width;
      canvas.height = viewHeight();
      plugin = new FlameChartPlugin({ data: [tree.root], colors: {} });
      chart = new FlameChartContainer({ canvas, plugins: [plugin], settings: settings() });
      chart.hotkeys(false);
      plugin.on("select", ({ node }) => {
        if (!node) return;
        select(node.source, false);
        zoomTo(node.source);
      });
      chart.interactionsEngine.on("change-position", () => {
        view.scrollTop = plugin.positionY;
      });
    } else {
      plugin.setData([tree.root]);
    }
    resize();
    zoomed = tree.made[keep] ?? tree.root;
    selected = tree.made[keepSelected] ?? tree.root;
    look();
    tell(selected);
  }

  function resize() {
    if (!tree || !chart) return;
    const height = viewHeight();
    view.style.height = `${height + 2}px`;
    spacer.style.height = `${tree.rows * (BLOCK + 1)}px`;
    chart.resize(Math.max(160, view.clientWidth), height);
  }

  /** Shows the part that is zoomed into. */
  function look() {
    const node = zoomed ?? tree.root;
    // The new size is taken over in the next frame; a zoom before that would be measured against the old one.
    requestAnimationFrame(() => {
      if (!chart || node !== (zoomed ?? tree.root)) return;
      if (node === tree.root) chart.renderEngine.resetView();
      else {
        const engine = chart.renderEngine;
        engine.setZoom(engine.width / node.duration);
        engine.setPositionX(node.start);
      }
      chart.render();
      requestAnimationFrame(mark);
    });
  }

  function zoomTo(node) {
    zoomed = node;
    look();
  }

  function mark() {
    if (!chart || !tree) return;
    const focused = document.activeElement === view;
    marker.hidden = !focused || !selected;
    if (marker.hidden) return;
    const { x, y, w } = plugin.calcRect(selected.start, selected.duration, selected.depth);
    const left = Math.max(0, x);
    const right = Math.min(view.clientWidth, x + Math.max(w, 3));
    marker.style.left = `${left}px`;
    marker.style.top = `${y}px`;
    marker.style.width = `${Math.max(4, right - left)}px`;
    marker.style.height = `${BLOCK}px`;
  }

  function select(node, follow = true) {
    selected = node;
    tell(node);
    if (follow) {
      const top = node.depth * (BLOCK + 1);
      if (top < view.scrollTop) view.scrollTop = top;
      else if (top + BLOCK > view.scrollTop + view.clientHeight) view.scrollTop = top + BLOCK + 4 - view.clientHeight;
      // What is selected has to be in sight: a selection outside of the zoom takes the zoom along.
      if (node.start < zoomed.start || node.start + node.duration > zoomed.start + zoomed.duration) zoomTo(node.depth < zoomed.depth ? node : (node.parent ?? tree.root));
    }
    mark();
  }

  function onHover(region) {
    tell(region ? region.data.source : selected);
  }

  view.addEventListener(
    "wheel",
    (event) => {
      // The wheel scrolls; with Ctrl it zooms, as in other graphs.
      if (!event.ctrlKey) event.stopPropagation();
    },
    { capture: true, passive: true },
  );
  view.addEventListener("scroll", () => {
    if (!plugin) return;
    plugin.setPositionY(view.scrollTop);
    chart.render();
    requestAnimationFrame(mark);
  });
  view.addEventListener("focus", mark);
  view.addEventListener("blur", mark);
  view.addEventListener("keydown", (event) => {
    if (!selected || event.ctrlKey || event.metaKey || event.altKey) return;
    const brothers = selected.parent?.children ?? [selected];
    const at = brothers.indexOf(selected);
    const steps = {
      ArrowDown: () => selected.children[0],
      ArrowUp: () => selected.parent,
      ArrowLeft: () => brothers[at - 1],
      ArrowRight: () => brothers[at + 1],
      Home: () => tree.root,
    };
    if (steps[event.key]) {
      const next = steps[event.key]();
      if (next) select(next);
    } else if (event.key === "Enter" || event.key === " ") zoomTo(selected);
    else if (event.key === "Escape" && zoomed !== tree.root) {
      zoomTo(tree.root);
      event.stopPropagation();
    } else return;
    event.preventDefault();
  });

  const sized = new ResizeObserver(() => {
    if (!tree || !chart || Math.abs(chart.renderEngine.width - view.clientWidth) < 1) return;
    resize();
    look();
  });
  sized.observe(view);
  const themed = () => {
    colors = palette();
    if (!chart) return;
    chart.setSettings(settings());
    draw();
  };
  document.addEventListener("themechange", themed);

  function match() {
    const wanted = needle.toLowerCase();
    matches = stacks.frames.map((frame, at) => names[at].toLowerCase().includes(wanted) || (frame.file ?? "").toLowerCase().includes(wanted));
  }

  /** How much matches; each part is counted once, not below another match. */
  function found() {
    let weight = 0;
    let number = 0;
    const walk = [tree.root];
    while (walk.length > 0) {
      const node = walk.pop();
      if (node.id !== 0 && matches[stacks.nodes[node.id].frame]) {
        weight += node.duration;
        number += 1;
      } else walk.push(...node.children);
    }
    return { weight, number };
  }

  return {
    element,
    /** Shows other stacks; `part` is `all`, `grew` or `shrank`. */
    show(next, part) {
      stacks = next;
      side = part;
      names = frameNames(stacks);
      families = names.map((text) => hash(family(text)));
      zoomed = selected = null;
      match();
      draw();
      return { total: tree.root.duration, shown: tree.shown, hidden: tree.hidden };
    },
    /** Marks what matches; tells how much that is. */
    search(text) {
      needle = text.trim();
      if (!stacks) return null;
      match();
      draw();
      if (!needle) return null;
      const { weight, number } = found();
      return { weight, number, share: tree.root.duration ? weight / tree.root.duration : 0 };
    },
    reset: () => zoomTo(tree.root),
    /** Where a test or a reader can ask what is shown. */
    state: () => ({ frames: tree?.shown ?? 0, zoom: zoomed?.name ?? null, selected: selected?.name ?? null }),
    close() {
      sized.disconnect();
      document.removeEventListener("themechange", themed);
      chart?.interactionsEngine.destroy();
      chart = null;
    },
  };
}
