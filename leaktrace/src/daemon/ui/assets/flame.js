// The flame graph: the library paints the rectangles of one view, this module chooses the view and gives it a keyboard.

import { FlameChartContainer, FlameChartPlugin } from "./flame-chart.js";
import { h, setText } from "./dom.js";
import { percent, place, visible } from "./text.js";
import { family, hash, Tree } from "./tree.js";

const BLOCK = 18;
const ROW = BLOCK + 1;
const MAX_VIEW = 640;
const HUES = [8, 24, 38, 52, 78, 140, 172, 196, 214, 236, 262, 290, 322, 344];

/** Colours of the theme in use. */
function palette() {
  const dark = globalThis.leaktraceTheme?.current === "dark";
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    background: read("--surface"),
    text: read("--flame-text"),
    font: `11px ${read("--mono")}`,
    root: dark ? "#2b3742" : "#d5dde4",
    faded: dark ? "#232c34" : "#e4e8ec",
    found: dark ? "#8a5500" : "#ffc24d",
    of: (seed) => `hsl(${HUES[seed % HUES.length]} ${dark ? "34% 30%" : "62% 80%"})`,
    side: { grew: dark ? [18, "58%", 20, 16] : [18, "82%", 90, -22], shrank: dark ? [208, "50%", 20, 16] : [208, "70%", 90, -22] },
  };
}

/** A flame graph; `write` puts amounts in words. */
export function flameGraph({ label, write }) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true");
  const marker = h("div", { class: "flame-focus", "aria-hidden": "true", hidden: true });
  const spacer = h("div", {});
  const view = h(
    "div",
    { class: "flame", tabindex: "0", role: "application", "aria-roledescription": "flame graph", "aria-label": label, "aria-describedby": "flame-help", "data-flame": "" },
    h("div", { class: "stick" }, canvas),
    marker,
    spacer,
  );
  const name = h("span", { class: "name hostile" });
  const where = h("span", { class: "where hostile" });
  const amount = h("span", { class: "amount" });
  const share = h("span", { class: "share" });
  const detail = h("div", { class: "flame-detail", "aria-live": "polite", "aria-atomic": "true" }, name, amount, where, share);
  const element = h(
    "div",
    { class: "flame-all" },
    h("p", { id: "flame-help", class: "visually-hidden" }, "Arrow keys move between frames, Enter zooms into one, Escape zooms out."),
    detail,
    view,
  );

  let stacks = null;
  let side = "all";
  let tree = null;
  let names = [];
  let seeds = [];
  let chart = null;
  let plugin = null;
  let zoomed = 0;
  let selected = 0;
  let rows = 1;
  let needle = "";
  let matches = null;
  let colors = palette();

  function nameOf(at) {
    if (at === 0) return "all";
    const frame = tree.frame[at];
    names[frame] ??= visible(stacks.frames[frame]?.function, 1000) || "(no name)";
    return names[frame];
  }

  function colorOf(at) {
    if (at === 0) return colors.root;
    const frame = tree.frame[at];
    if (matches) return matches[frame] ? colors.found : colors.faded;
    if (side === "all") return colors.of((seeds[frame] ??= hash(family(nameOf(at)))));
    const [hue, saturation, base, spread] = colors.side[side];
    const part = Math.round(Math.sqrt(tree.weight[at] / (tree.weight[0] || 1)) * 5) / 5;
    return `hsl(${hue} ${saturation} ${Math.round(base + spread * part)}%)`;
  }

  function tell(at) {
    if (!tree) return;
    setText(name, nameOf(at));
    setText(where, at === 0 ? `${tree.shown.toLocaleString("en")} frames` : place(stacks.frames[tree.frame[at]]) || "source unknown");
    setText(amount, side === "all" ? write(tree.total[at]) : `${side} ${write(tree.weight[at])}, net ${write(tree.total[at])}`);
    const own = tree.own[at] !== 0 && at !== 0 ? `, itself ${write(tree.own[at])}` : "";
    setText(share, `${percent(tree.weight[0] ? tree.weight[at] / tree.weight[0] : 0)} of all${own}`);
  }

  function settings() {
    return {
      options: { tooltip: (region) => tell(region ? region.data.source.id : selected) },
      styles: {
        main: { blockHeight: BLOCK, blockPaddingLeftRight: 5, backgroundColor: colors.background, font: colors.font, fontColor: colors.text },
        timeGrid: { color: "transparent" },
      },
    };
  }

  const width = () => Math.max(160, view.clientWidth);

  /** Draws the view on what is zoomed into. */
  function draw() {
    if (!tree) return;
    // A higher view may bring a scroll bar, which makes it narrower; so the height comes first.
    let part = tree.view(zoomed, width(), nameOf, colorOf);
    rows = part.rows;
    const height = Math.min(MAX_VIEW, rows * ROW + 1);
    view.style.height = `${height + 2}px`;
    spacer.style.height = `${rows * ROW}px`;
    if (chart && chart.renderEngine.width !== width()) part = tree.view(zoomed, width(), nameOf, colorOf);
    if (!chart) {
      canvas.width = width();
      canvas.height = height;
      plugin = new FlameChartPlugin({ data: [part.root], colors: {} });
      chart = new FlameChartContainer({ canvas, plugins: [plugin], settings: settings() });
      chart.hotkeys(false);
      plugin.on("select", ({ node }) => {
        if (!node) return;
        selected = node.source.id;
        zoomTo(selected);
      });
      // What the library scrolls by dragging, the element has to scroll, too.
      chart.interactionsEngine.on("change-position", () => {
        view.scrollTop = plugin.positionY;
        plugin.setPositionY(view.scrollTop);
      });
    } else {
      chart.renderEngine.resize(width(), height);
      plugin.setData([part.root]);
    }
    if (view.scrollTop > rows * ROW) view.scrollTop = 0;
    plugin.setPositionY(view.scrollTop);
    chart.render();
    mark();
  }

  function zoomTo(at) {
    zoomed = at;
    draw();
    bring(Math.max(0, tree.depth[at] - 1));
    tell(selected);
  }

  /** Scrolls a row into sight. */
  function bring(depth) {
    const top = depth * ROW;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + 2 * ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + 2 * ROW - view.clientHeight;
  }

  function mark() {
    marker.hidden = document.activeElement !== view || !tree;
    if (marker.hidden) return;
    const scale = width() / tree.weight[zoomed];
    const above = tree.isAbove(selected, zoomed);
    const left = above ? 0 : tree.start(selected, zoomed) * scale;
    const wide = above ? width() : tree.weight[selected] * scale;
    marker.style.left = `${Math.min(left, width() - 5)}px`;
    marker.style.top = `${tree.depth[selected] * ROW}px`;
    marker.style.width = `${Math.max(5, wide)}px`;
    marker.style.height = `${BLOCK}px`;
  }

  function select(at) {
    selected = at;
    // What is selected has to be in the view, and wide enough to be seen.
    const inside = tree.isAbove(zoomed, at);
    if (!inside && !tree.isAbove(at, zoomed)) zoomTo(tree.parent[at]);
    else if (inside && (tree.weight[at] / tree.weight[zoomed]) * width() < 2) zoomTo(tree.parent[at]);
    bring(tree.depth[at]);
    tell(at);
    mark();
  }

  // The wheel scrolls; the library would zoom with it.
  view.addEventListener("wheel", (event) => event.stopPropagation(), { capture: true, passive: true });
  view.addEventListener("scroll", () => {
    if (!plugin) return;
    plugin.setPositionY(view.scrollTop);
    chart.render();
  });
  view.addEventListener("focus", mark);
  view.addEventListener("blur", mark);
  view.addEventListener("keydown", (event) => {
    if (!tree || event.ctrlKey || event.metaKey || event.altKey) return;
    const brother = (step) => {
      if (selected === 0) return undefined;
      const all = tree.children(tree.parent[selected]);
      return all[all.indexOf(selected) + step];
    };
    const steps = {
      ArrowDown: () => tree.children(selected)[0],
      ArrowUp: () => (selected === 0 ? undefined : tree.parent[selected]),
      ArrowLeft: () => brother(-1),
      ArrowRight: () => brother(1),
      Home: () => 0,
    };
    if (steps[event.key]) {
      const next = steps[event.key]();
      if (next !== undefined) select(next);
    } else if (event.key === "Enter" || event.key === " ") zoomTo(selected);
    else if (event.key === "Escape" && zoomed !== 0) zoomTo(0);
    else return;
    event.preventDefault();
  });

  const sized = new ResizeObserver(() => {
    if (chart && chart.renderEngine.width !== width()) draw();
  });
  sized.observe(view);
  const themed = () => {
    colors = palette();
    chart?.setSettings(settings());
    draw();
  };
  document.addEventListener("themechange", themed);

  function match() {
    const wanted = needle.toLowerCase();
    matches = needle ? stacks.frames.map((frame) => frame.function.toLowerCase().includes(wanted) || (frame.file ?? "").toLowerCase().includes(wanted)) : null;
  }

  return {
    element,
    /** Shows other stacks; `part` is `all`, `grew` or `shrank`. Tells how much there is. */
    show(next, part) {
      if (next !== stacks) {
        names = [];
        seeds = [];
      }
      stacks = next;
      side = part;
      tree = new Tree(stacks, side);
      zoomed = selected = 0;
      match();
      if (tree.weight[0] > 0) {
        draw();
        tell(0);
      }
      return { total: tree.weight[0], shown: tree.shown, hidden: tree.hidden };
    },
    /** Marks what matches; tells how much that is. */
    search(text) {
      needle = text.trim();
      if (!tree) return null;
      match();
      draw();
      return matches && tree.found(matches);
    },
    reset: () => tree && zoomTo(0),
    close() {
      sized.disconnect();
      document.removeEventListener("themechange", themed);
      chart?.interactionsEngine.destroy();
      chart = null;
      tree = null;
    },
  };
}
