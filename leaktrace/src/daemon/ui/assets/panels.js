// The panels of one process beside the flame graph: functions, goroutines, collector, stored profiles.

import { aborted, address, get } from "./api.js";
import { busy, choice, empty, failure, h, replace, setText } from "./dom.js";
import { bytes, count, duration, moment, NONE, percent, place, visible } from "./text.js";

export const HEAPS = [
  ["all", "All"],
  ["native", "Native"],
  ["go", "Go"],
  ["mmap", "mmap"],
  ["resident", "Resident"],
  ["reserved", "Reserved"],
];

/** The heaps that a process can have. */
export function heapChoices(isGo) {
  return HEAPS.map(([value, label]) => [value, label, value === "go" && !isGo ? "This process does not run Go" : null]);
}

/** Writes amounts of a sample type. */
export function writer(sampleType) {
  return sampleType.endsWith("_objects") ? count : bytes;
}

/** Comments of a profile: mode and losses. */
export function remarks(comments) {
  if (comments.length === 0) return null;
  return h("details", {}, h("summary", { class: "muted" }, `About these figures (${comments.length})`), h("ul", { class: "note" }, comments.slice(0, 100).map((text) => h("li", { class: "hostile" }, visible(text, 600)))));
}

/** Asks `load` again whenever it is told to, and lets only the last answer count. */
function loader(output, what, load, nothing) {
  let asking = null;
  const run = async () => {
    asking?.abort();
    const mine = new AbortController();
    asking = mine;
    output.setAttribute("aria-busy", "true");
    if (!output.hasChildNodes()) replace(output, busy(what));
    try {
      const answer = await load(mine.signal);
      if (!mine.signal.aborted) replace(output, answer);
    } catch (error) {
      if (aborted(error) || mine.signal.aborted) return;
      replace(output, nothing?.(error) ?? failure(error, run));
    } finally {
      if (asking === mine) output.removeAttribute("aria-busy");
    }
  };
  return { run, close: () => asking?.abort() };
}

const TYPES = [
  ["inuse_space", "In use"],
  ["alloc_space", "Allocated"],
  ["inuse_objects", "Objects in use"],
  ["alloc_objects", "Objects allocated"],
];

/** Functions, largest first. */
export function topPanel(context) {
  const { pid, parameters, remember } = context;
  const wanted = {
    sample_type: TYPES.some(([type]) => type === parameters.get("type")) ? parameters.get("type") : "inuse_space",
    heap: HEAPS.some(([heap]) => heap === parameters.get("heap")) ? parameters.get("heap") : "all",
    cum: parameters.get("by") === "cum",
    filter: parameters.get("find") ?? "",
  };
  const output = h("div", { class: "scroll-x" });
  const search = h("input", { type: "search", placeholder: "Function or file…", "aria-label": "Search functions", value: wanted.filter, spellcheck: "false", autocomplete: "off" });
  let typing = null;
  const changed = () => {
    remember({ type: wanted.sample_type === "inuse_space" ? null : wanted.sample_type, heap: wanted.heap === "all" ? null : wanted.heap, by: wanted.cum ? "cum" : null, find: wanted.filter || null });
    work.run();
  };
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      wanted.filter = search.value.trim();
      changed();
    }, 200);
  });
  const work = loader(
    output,
    "Reading the profile…",
    async (signal) => {
      const without = context.untraced();
      if (without) return without;
      const top = await get(`/processes/${pid}/top`, { ...wanted, limit: 300 }, { signal, seconds: 60 });
      const write = writer(top.sample_type);
      if (top.rows.length === 0) {
        return wanted.filter ? empty("No function matches", "The search looks at names of functions and files.") : empty("Nothing is outstanding", "No allocation of this kind was seen since tracing began.");
      }
      const total = Math.abs(top.total) || 1;
      const cell = (value) => {
        const bar = h("span", { class: "share-bar", "aria-hidden": "true" });
        bar.style.width = `${Math.min(100, (Math.abs(value) / total) * 100)}%`;
        return h("td", { class: "number bar-cell" }, write(value), bar);
      };
      const sortable = (label, cum) =>
        h(
          "th",
          { scope: "col", class: "number", "aria-sort": wanted.cum === cum ? "descending" : null },
          h("button", { type: "button", onclick: () => { wanted.cum = cum; changed(); } }, label),
        );
      return [
        h(
          "table",
          { class: "functions" },
          h("thead", {}, h("tr", {}, sortable("Flat", false), h("th", { scope: "col", class: "number" }, "Flat %"), sortable("Cumulative", true), h("th", { scope: "col", class: "number" }, "Cum %"), h("th", { scope: "col" }, "Function"), h("th", { scope: "col" }, "Source"))),
          h(
            "tbody",
            {},
            top.rows.map((row) =>
              h(
                "tr",
                {},
                cell(row.flat),
                h("td", { class: "number" }, percent(row.flat / total)),
                cell(row.cum),
                h("td", { class: "number" }, percent(row.cum / total)),
                h("td", { class: "function hostile" }, visible(row.function, 1000) || "(no name)"),
                h("td", { class: "where hostile" }, place(row) || NONE),
              ),
            ),
          ),
        ),
        h("p", { class: "note", role: "status" }, `${count(top.rows.length)} of ${count(top.rows_total)} functions; ${write(top.total)} in all.`),
        remarks(top.comments),
      ];
    },
    context.untraced,
  );
  const element = h(
    "div",
    { class: "panel" },
    h(
      "div",
      { class: "tools" },
      search,
      choice("Sample type", TYPES, wanted.sample_type, (type) => { wanted.sample_type = type; changed(); }),
      choice("Heap", heapChoices(context.isGo), wanted.heap, (heap) => { wanted.heap = heap; changed(); }),
      h("button", { type: "button", class: "button", onclick: () => work.run() }, "Refresh"),
    ),
    output,
  );
  work.run();
  return { element, close: () => { clearTimeout(typing); work.close(); } };
}

const WAITS = [
  ["0", "Any wait"],
  ["60", "1 min or longer"],
  ["600", "10 min or longer"],
  ["3600", "1 h or longer"],
];

function frameItem(frame, note) {
  return h("li", { class: "hostile" }, note, visible(frame.function, 1000) || "(no name)", h("span", { class: "where" }, place(frame)));
}

/** Goroutines, grouped by what they do. */
export function goroutinePanel(context) {
  const { pid, parameters, remember } = context;
  let wait = WAITS.some(([value]) => value === parameters.get("wait")) ? parameters.get("wait") : "0";
  let needle = parameters.get("find") ?? "";
  let answer = null;
  const output = h("div", { class: "groups" });
  const search = h("input", { type: "search", placeholder: "Function, state, reason…", "aria-label": "Search goroutines", value: needle, spellcheck: "false", autocomplete: "off" });
  search.addEventListener("input", () => {
    needle = search.value.trim();
    remember({ find: needle || null });
    if (answer) replace(output, draw());
  });

  function matches(group) {
    if (!needle) return true;
    const wanted = needle.toLowerCase();
    const texts = [group.state, group.wait_reason, ...group.stack.flatMap((frame) => [frame.function, frame.file])];
    return texts.some((text) => text?.toLowerCase().includes(wanted));
  }

  function draw() {
    if (answer.groups.length === 0) return empty("No goroutine waits that long", `The process has ${count(answer.total)} goroutines in all.`);
    const groups = answer.groups.filter(matches);
    if (groups.length === 0) return empty("No group matches", "The search looks at functions, files, states and reasons.");
    const shown = groups.slice(0, 500);
    return [
      h("p", { class: "note", role: "status" }, `${count(answer.total)} goroutines in ${count(answer.groups.length)} groups${groups.length < answer.groups.length ? `, ${count(groups.length)} match` : ""}${shown.length < groups.length ? `; the largest ${count(shown.length)} are shown` : ""}.`),
      shown.map((group) => {
        // The runtime's own frames say how it waits, and the reason says that already.
        const first = group.stack.find((frame) => !/^(runtime|internal|sync|syscall)[./]/.test(frame.function)) ?? group.stack[0];
        const details = h(
          "details",
          { class: "group" },
          h(
            "summary",
            {},
            h("span", { class: "many" }, `${count(group.count)} ×`),
            h("span", { class: "what" }, visible(group.wait_reason ?? group.state, 80)),
            h("span", { class: "first hostile" }, first ? visible(first.function, 300) : "(no stack)"),
            h("span", { class: "wait muted" }, group.longest_wait == null ? "" : `waits up to ${duration(group.longest_wait)}`),
            h("span", { class: "muted" }, `${bytes(group.stack_bytes)} of stack`),
          ),
        );
        // A stack is built when it is opened: there may be thousands.
        details.addEventListener(
          "toggle",
          () =>
            details.append(
              h(
                "div",
                { class: "stack" },
                h("ol", {}, group.stack.slice(0, 300).map((frame) => frameItem(frame, null)), group.created_by && frameItem(group.created_by, h("span", { class: "muted" }, "created by "))),
                h("p", { class: "note" }, `State ${visible(group.state, 60)}`, group.channel == null ? "" : `, channel 0x${group.channel.toString(16)}`, `, goroutines ${group.ids.slice(0, 20).join(", ")}${group.count > group.ids.length || group.ids.length > 20 ? ", …" : ""}`),
              ),
            ),
          { once: true },
        );
        return details;
      }),
    ];
  }

  const work = loader(output, "Reading goroutines from the process…", async (signal) => {
    answer = await get(`/processes/${pid}/goroutines`, { min_wait: wait }, { signal, seconds: 60 });
    return draw();
  });
  const element = h(
    "div",
    { class: "panel" },
    h(
      "div",
      { class: "tools" },
      search,
      choice("Wait", WAITS, wait, (value) => {
        wait = value;
        remember({ wait: value === "0" ? null : value });
        work.run();
      }),
      h("button", { type: "button", class: "button", onclick: () => work.run() }, "Refresh"),
      h("a", { class: "button", href: `/debug/pprof/goroutine?pid=${pid}`, download: `goroutine-${pid}.pb.gz` }, "Download pprof"),
      h("a", { class: "button", href: `/debug/pprof/goroutine?pid=${pid}&debug=2`, download: `goroutines-${pid}.txt` }, "Download text"),
    ),
    output,
  );
  work.run();
  return { element, close: work.close };
}

/** Go's collector. */
export function gcPanel(context) {
  const output = h("div", { class: "scroll-x" });
  const work = loader(output, "Reading the collector's figures from the process…", async (signal) => {
    const gc = await get(`/processes/${context.pid}/gc`, {}, { signal, seconds: 60 });
    const figures = [
      ["Collections", count(gc.collections_total)],
      ["Live", bytes(gc.live)],
      ["Next goal", gc.goal > Number.MAX_SAFE_INTEGER ? "off" : bytes(gc.goal)],
      ["Spans in use", bytes(gc.in_use)],
      ["CPU share", percent(gc.cpu_fraction)],
      ["GOGC", gc.gogc < 0 ? "off" : String(gc.gogc)],
      ["GOMEMLIMIT", gc.memory_limit == null ? "none" : bytes(gc.memory_limit)],
    ];
    const rows = gc.collections.slice().reverse();
    const title = ["Number", "Ended", "Pause", "Heap at begin", "Heap at end", "Live", "Goal"];
    return [
      h("dl", { class: "figures" }, figures.map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text)))),
      rows.length === 0
        ? empty("No collection seen yet", "The daemon lists those that end while it looks.")
        : h(
            "table",
            {},
            h("thead", {}, h("tr", {}, title.map((text, at) => h("th", { scope: "col", class: at === 1 ? null : "number" }, text)))),
            h(
              "tbody",
              {},
              rows.map((one) => h("tr", {}, [count(one.number), one.end ? moment(one.end) : NONE, duration(one.pause), bytes(one.before), bytes(one.after), bytes(one.live), bytes(one.goal)].map((text, at) => h("td", { class: at === 1 ? null : "number" }, text)))),
            ),
          ),
    ];
  });
  const element = h("div", { class: "panel" }, h("div", { class: "tools" }, h("button", { type: "button", class: "button", onclick: () => work.run() }, "Refresh")), output);
  work.run();
  return { element, close: work.close };
}

/** Profiles in the store, newest first. */
export function storedPanel(context) {
  const { pid } = context;
  const output = h("div", { class: "scroll-x" });
  const status = h("span", { role: "status", class: "muted" });
  const work = loader(output, "Reading the store…", async (signal) => {
    const { profiles } = await get(`/processes/${pid}/profiles`, {}, { signal });
    if (profiles.length === 0) return empty("No profile in the store", "A traced process gets a profile each minute, a watched Go process one every ten minutes, unless /etc/leaktrace.toml says otherwise.");
    setText(status, `${count(profiles.length)} profiles, ${bytes(profiles.reduce((sum, one) => sum + one.size, 0))}`);
    const shown = profiles.slice(0, 500);
    const title = ["From", "To", "Heap", "In use", "File", "Since the one before", "Download"];
    return [
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, title.map((text, at) => h("th", { scope: "col", class: at === 3 || at === 4 ? "number" : null }, text)))),
        h(
          "tbody",
          {},
          shown.map((one, at) => {
            const before = profiles.slice(at + 1).find((other) => other.heap === one.heap && other.process.start_time === one.process.start_time);
            const path = (format) => address(`/processes/${pid}/profiles/${encodeURIComponent(one.id)}`, { format });
            const link = (format, label, ending) => h("a", { href: path(format), download: `heap-${pid}-${moment(one.end, 0).replace(/[ :]/g, "-")}${ending}` }, label);
            return h(
              "tr",
              {},
              h("td", {}, moment(one.begin)),
              h("td", {}, moment(one.end)),
              h("td", {}, visible(one.heap, 40)),
              h("td", { class: "number" }, bytes(one.in_use)),
              h("td", { class: "number" }, bytes(one.size)),
              h("td", {}, before ? h("a", { href: context.link("flame", { mode: "growth", from: before.id, to: one.id }) }, "Growth") : NONE),
              h("td", {}, h("span", { class: "actions" }, link(undefined, "pprof", ".pb.gz"), link("svg", "SVG", ".svg"), link("folded", "folded", ".txt"))),
            );
          }),
        ),
      ),
      shown.length < profiles.length && h("p", { class: "note" }, `The newest ${count(shown.length)} are shown; leaktrace list names all.`),
    ];
  });
  const element = h("div", { class: "panel" }, h("div", { class: "tools" }, h("button", { type: "button", class: "button", onclick: () => work.run() }, "Refresh"), status), output);
  work.run();
  return { element, close: work.close };
}
