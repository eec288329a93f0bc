// The panel with the flame graph: what is asked for, from when to when, and of which heap.

import { aborted, get } from "./api.js";
import { busy, choice, empty, failure, h, replace, setText } from "./dom.js";
import { flameGraph } from "./flame.js";
import { heapChoices, HEAPS, remarks, writer } from "./panels.js";
import { count, moment, percent } from "./text.js";

const MODES = [
  ["inuse", "In use"],
  ["alloc", "Allocated"],
  ["growth", "Growth"],
];
const UNITS = [
  ["space", "Bytes"],
  ["objects", "Objects"],
];
const SIDES = [
  ["grew", "Grew"],
  ["shrank", "Shrank"],
];
// Nodes of the tree; the daemon folds the smallest into their callers.
const MAX_NODES = 100_000;

function pick(parameters, name, options, otherwise) {
  const value = parameters.get(name);
  return options.some(([key]) => key === value) ? value : otherwise;
}

/** The panel. */
export function flamePanel(context) {
  const { pid, parameters, remember } = context;
  const wanted = {
    mode: pick(parameters, "mode", MODES, "inuse"),
    unit: pick(parameters, "unit", UNITS, "space"),
    heap: pick(parameters, "heap", HEAPS, "all"),
    side: pick(parameters, "side", SIDES, "grew"),
    from: parameters.get("from") ?? "",
    to: parameters.get("to") ?? "",
  };
  let needle = parameters.get("find") ?? "";
  let stored = null;
  let asking = null;
  let graph = null;

  const search = h("input", { type: "search", placeholder: "Function or file…", "aria-label": "Search the flame graph", value: needle, spellcheck: "false", autocomplete: "off" });
  const found = h("span", { role: "status", class: "muted" });
  const taken = h("span", { role: "status", class: "end" });
  const moments = h("div", { class: "tools", hidden: true });
  const output = h("div", {});
  const below = h("div", {});
  const reset = h("button", { type: "button", class: "button", onclick: () => graph?.reset() }, "Zoom out");

  let typing = null;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      needle = search.value.trim();
      remember({ find: needle || null });
      mark();
    }, 150);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    output.querySelector("[data-flame]")?.focus();
  });

  function mark() {
    if (!graph) return;
    const result = graph.search(needle);
    setText(found, result ? `${count(result.number)} ${result.number === 1 ? "match" : "matches"}, ${percent(result.share)}` : "");
  }

  function changed() {
    remember({
      mode: wanted.mode === "inuse" ? null : wanted.mode,
      unit: wanted.unit === "space" ? null : wanted.unit,
      heap: wanted.heap === "all" ? null : wanted.heap,
      side: wanted.mode === "growth" && wanted.side === "shrank" ? "shrank" : null,
      from: wanted.mode === "growth" ? wanted.from || null : null,
      to: wanted.mode === "growth" ? wanted.to || null : null,
    });
    run();
  }

  function label(profile) {
    return `${moment(profile.end)}${profile.heap === "both" ? "" : ` (${profile.heap})`}`;
  }

  function drawMoments() {
    moments.hidden = wanted.mode !== "growth";
    if (moments.hidden || !stored) return;
    const option = (profile, chosen) => h("option", { value: profile.id, selected: profile.id === chosen }, label(profile));
    const select = (name, options) => {
      const element = h("select", { "aria-label": name === "from" ? "From" : "To" }, options);
      element.addEventListener("change", () => {
        wanted[name] = element.value;
        changed();
      });
      return element;
    };
    replace(
      moments,
      h("label", { class: "field" }, "From", select("from", stored.map((profile) => option(profile, wanted.from)))),
      h("label", { class: "field" }, "to", select("to", [h("option", { value: "", selected: !wanted.to }, "now"), ...stored.map((profile) => option(profile, wanted.to))])),
      choice("Side of the difference", SIDES, wanted.side, (side) => {
        wanted.side = side;
        changed();
      }),
    );
  }

  async function loadMoments(signal) {
    if (!stored) {
      const answer = await get(`/processes/${pid}/profiles`, {}, { signal });
      stored = answer.profiles.filter((profile) => !context.start || profile.process.start_time === context.start).slice(0, 500);
    }
    if (stored.length === 0) return false;
    if (!stored.some((profile) => profile.id === wanted.from)) wanted.from = stored.at(-1).id;
    if (wanted.to && !stored.some((profile) => profile.id === wanted.to)) wanted.to = "";
    return true;
  }

  async function run() {
    asking?.abort();
    const mine = new AbortController();
    asking = mine;
    const { signal } = mine;
    if (!graph) replace(output, busy("Reading stacks…"));
    output.setAttribute("aria-busy", "true");
    try {
      const without = context.untraced();
      if (without) {
        drop();
        moments.hidden = true;
        replace(output, without);
        replace(below);
        return;
      }
      const growth = wanted.mode === "growth";
      if (growth && !(await loadMoments(signal))) {
        drop();
        drawMoments();
        replace(output, empty("No stored profile to compare with", "Growth is shown between two moments, and the store has none of this process yet. A traced process gets its first profile after a minute."));
        return;
      }
      drawMoments();
      const type = `${wanted.mode === "alloc" ? "alloc" : "inuse"}_${wanted.unit}`;
      const stacks = await get(
        `/processes/${pid}/stacks`,
        { sample_type: type, heap: wanted.heap, from: growth ? wanted.from : null, to: growth ? wanted.to : null, limit: MAX_NODES },
        { signal, seconds: 90 },
      );
      if (signal.aborted) return;
      draw(stacks, type, growth ? wanted.side : "all");
    } catch (error) {
      if (aborted(error) || signal.aborted) return;
      drop();
      replace(output, context.untraced(error) ?? failure(error, run));
      replace(below);
    } finally {
      if (asking === mine) output.removeAttribute("aria-busy");
    }
  }

  function drop() {
    graph?.close();
    graph = null;
    setText(taken, "");
    setText(found, "");
  }

  function draw(stacks, type, side) {
    const write = writer(type);
    // The way in which amounts are written belongs to the graph: another type is another graph.
    if (!graph || graph.type !== type) {
      drop();
      graph = flameGraph({ label: "Flame graph", write });
      graph.type = type;
      replace(output, graph.element);
    }
    const shown = graph.show(stacks, side);
    if (shown.total === 0) {
      drop();
      replace(output, nothing(side));
      replace(below, remarks(stacks.comments));
      return;
    }
    const notes = [];
    if (stacks.folded) notes.push(`${count(stacks.folded)} small stacks are folded into their callers.`);
    if (shown.hidden) notes.push(`${count(shown.hidden)} frames lie too deep to be drawn.`);
    setText(taken, `${count(shown.shown)} frames, ${write(shown.total)}, taken at ${moment(Date.now() * 1e6)}`);
    replace(below, notes.length > 0 && h("p", { class: "note" }, notes.join(" ")), remarks(stacks.comments));
    if (needle) mark();
  }

  function nothing(side) {
    if (side === "grew") return empty("Nothing grew", "Between these moments no stack holds more than before. Choose an earlier first moment, or look at what shrank.");
    if (side === "shrank") return empty("Nothing shrank", "Between these moments no stack holds less than before.");
    if (wanted.heap !== "all") return empty("Nothing on this heap", "No stack of this process holds memory there. Other heaps may.");
    return empty("Nothing is outstanding", "All that was allocated since tracing began has been freed.");
  }

  const element = h(
    "div",
    { class: "panel" },
    h(
      "div",
      { class: "tools" },
      choice("What is shown", MODES, wanted.mode, (mode) => {
        wanted.mode = mode;
        changed();
      }),
      choice("Unit", UNITS, wanted.unit, (unit) => {
        wanted.unit = unit;
        changed();
      }),
      choice("Heap", heapChoices(context.isGo), wanted.heap, (heap) => {
        wanted.heap = heap;
        changed();
      }),
      search,
      found,
      reset,
      h("button", { type: "button", class: "button", onclick: run }, "Refresh"),
      h("a", { class: "button", href: `/debug/pprof/heap?pid=${pid}`, download: `heap-${pid}.pb.gz` }, "Download pprof"),
      taken,
    ),
    moments,
    output,
    below,
  );
  run();
  return {
    element,
    close: () => {
      clearTimeout(typing);
      asking?.abort();
      drop();
    },
  };
}
