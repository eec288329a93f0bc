// The list of processes.
//
// The daemon sorts, filters and cuts; here are only the rows in sight, in elements that are used again and again. The
// table itself has the keyboard's focus and names its active row, so that a refresh can take no focus away.

import { aborted, get } from "./api.js";
import { choice, empty, failure, h, replace, setAttribute, setText } from "./dom.js";
import { drawSpark, spark } from "./spark.js";
import { bytes, count, NONE, signed, visible } from "./text.js";

const ROW = 32;
const PAGE = 100;
const SPARE = 8;
const EVERY = 4000;

const COLUMNS = [
  { id: "state", label: "State", class: "state-cell", width: "col-state", first: "desc" },
  { id: "comm", label: "Process", class: "", width: "col-name", first: "asc" },
  { id: "pid", label: "PID", class: "number slim", width: "col-pid col-slim", first: "asc" },
  { id: "user", label: "User", class: "mid", width: "col-user col-mid", first: "asc" },
  { id: "growth", label: "Growth per h", class: "number", width: "col-growth", first: "desc" },
  { id: null, label: "Last hour", class: "slim", width: "col-spark col-slim" },
  { id: "anonymous", label: "Anonymous", class: "number", width: "col-number", first: "desc" },
  { id: "rss", label: "RSS", class: "number mid", width: "col-number col-mid", first: "desc" },
  { id: "swap", label: "Swap", class: "number wide swap", width: "col-number col-wide col-swap", first: "desc" },
  { id: "tracked", label: "Tracked", class: "number mid", width: "col-number col-mid", first: "desc" },
  { id: "go_heap", label: "Go heap", class: "number wide", width: "col-number col-wide", first: "desc" },
  { id: null, label: "Why", class: "why", width: "col-why" },
];
const STATES = [
  ["", "All"],
  ["traced", "Traced"],
  ["watched", "Watched"],
  ["refused", "Refused"],
  ["detached", "Detached"],
  ["gone", "Gone"],
];

/** Where the list was when it was left, so that a look at one process does not cost the place. */
let left = null;

/** Address of the list as it was asked for last. */
export let listAddress = "#/";

/** Name of a row's process over its whole life. */
export const keyOf = (row) => `${row.pid}-${row.start_time}`;

function makeRow() {
  const link = h("a", { tabindex: "-1", class: "hostile" });
  const args = h("span", { class: "args hostile" });
  const state = h("span", { class: "state" });
  const line = spark();
  const cells = COLUMNS.map((column) => h("td", { class: column.class, role: "gridcell" }));
  cells[0].append(state);
  cells[1].append(link, args);
  cells[5].append(line.root);
  return { tr: h("tr", { role: "row" }, cells), cells, link, args, state, line };
}

function fillRow(row, data, index, active) {
  const { tr, cells, link, args, state, line } = row;
  setAttribute(tr, "aria-rowindex", String(index + 2));
  setAttribute(tr, "id", `row-${index}`);
  setAttribute(tr, "class", active ? "active" : null);
  setAttribute(tr, "aria-selected", String(active));
  tr.index = index;
  if (!data) {
    setText(link, "…");
    for (const other of [args, state, cells[2], cells[3], cells[4], cells[6], cells[7], cells[8], cells[9], cells[10], cells[11]]) setText(other, "");
    drawSpark(line, [], false, "");
    return;
  }
  const { memory, tracing } = data;
  const reason = visible(tracing.reason, 400);
  setText(state, tracing.state);
  setAttribute(state, "class", `state ${visible(tracing.state)}`);
  setAttribute(cells[0], "title", reason);
  setText(link, visible(data.comm, 64) || "(no name)");
  setAttribute(link, "href", `#/p/${keyOf(data)}`);
  const command = visible(data.command_line.join(" "), 300);
  setText(args, command);
  setAttribute(cells[1], "title", command);
  setText(cells[2], String(data.pid));
  setText(cells[3], visible(data.user ?? data.uid, 40));
  const growth = memory.growth;
  setText(cells[4], growth == null ? NONE : Math.abs(growth) < 1 ? "0 B" : signed(growth));
  setAttribute(cells[4], "class", `number ${growth > 1048576 ? "rise" : growth < -1048576 ? "fall" : ""}`);
  const recent = data.spark;
  drawSpark(line, recent, growth > 1048576, recent.length ? `from ${bytes(recent[0])} to ${bytes(recent.at(-1))}` : "no history yet");
  setText(cells[6], bytes(memory.anonymous));
  setText(cells[7], bytes(memory.rss));
  setText(cells[8], bytes(memory.swap));
  setText(cells[9], bytes(memory.tracked));
  setText(cells[10], bytes(memory.go_heap));
  setText(cells[11], reason);
  setAttribute(cells[11], "title", reason);
}

/** Opens the view in `root`. */
export function processes(root, opened) {
  const wanted = { sort: "growth", order: "desc", filter: "", state: "" };
  let pages = new Map();
  let total = 0;
  let active = 0;
  let activeKey = null;
  let paused = false;
  let timer = null;
  let asking = null;
  let failed = null;
  let answered = false;
  const rows = [];

  const search = h("input", { type: "search", placeholder: "Name, command, user, unit, pid…", "aria-label": "Search processes", autocomplete: "off", spellcheck: "false", class: "grow" });
  const shown = h("span", { role: "status", "aria-live": "polite" });
  const pause = h("button", { type: "button", class: "button", "aria-pressed": "false", onclick: togglePause }, "Pause");
  const states = h("span", {});
  const headers = COLUMNS.map((column) =>
    h("th", { scope: "col", role: "columnheader", class: column.class }, column.id ? h("button", { type: "button", onclick: () => sortBy(column) }, column.label) : column.label),
  );
  // One cell without a span: a span over columns that a narrow screen hides would make new ones.
  const above = h("td", {});
  const below = h("td", {});
  const body = h("tbody", { class: "rows" });
  const table = h(
    "table",
    { role: "presentation" },
    h("colgroup", {}, COLUMNS.map((column) => h("col", { class: column.width }))),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row", "aria-rowindex": "1" }, headers)),
    h("tbody", { class: "spacer", "aria-hidden": "true" }, h("tr", {}, above)),
    body,
    h("tbody", { class: "spacer", "aria-hidden": "true" }, h("tr", {}, below)),
  );
  const message = h("div", {});
  const grid = h("div", { class: "grid", tabindex: "0", role: "grid", "aria-label": "Processes", "data-first": "", onkeydown: onKey, onscroll: onScroll }, table, message);
  replace(
    root,
    h(
      "section",
      { class: "list", "aria-labelledby": "list-title" },
      h("h1", { id: "list-title", class: "visually-hidden" }, "Processes"),
      h("div", { class: "list-tools tools" }, search, states, h("span", { class: "end tools" }, shown, pause)),
      grid,
    ),
  );

  grid.addEventListener("click", (event) => {
    const tr = event.target.closest("tbody.rows tr");
    if (!tr || event.target.closest("a") || String(getSelection())) return;
    setActive(tr.index);
    openActive();
  });
  let typing = null;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      wanted.filter = search.value.trim();
      change();
    }, 120);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      grid.focus();
    }
  });
  const sized = new ResizeObserver(draw);
  sized.observe(grid);

  function read(parameters) {
    const sort = parameters.get("sort");
    wanted.sort = COLUMNS.some((column) => column.id && column.id === sort) ? sort : "growth";
    wanted.order = parameters.get("order") === "asc" ? "asc" : "desc";
    wanted.filter = parameters.get("filter") ?? "";
    wanted.state = STATES.some(([state]) => state === parameters.get("state")) ? parameters.get("state") : "";
    listAddress = location.hash || "#/";
    if (search.value.trim() !== wanted.filter) search.value = wanted.filter;
    replace(
      states,
      choice("State", STATES, wanted.state, (state) => {
        wanted.state = state;
        change();
      }),
    );
  }

  /** Another question: from the top, and the address tells it. */
  function change() {
    const address = new URLSearchParams();
    if (wanted.sort !== "growth") address.set("sort", wanted.sort);
    if (wanted.order !== "desc") address.set("order", wanted.order);
    if (wanted.filter) address.set("filter", wanted.filter);
    if (wanted.state) address.set("state", wanted.state);
    const text = address.toString();
    listAddress = `#/${text ? `?${text}` : ""}`;
    history.replaceState(null, "", listAddress);
    active = 0;
    activeKey = null;
    grid.scrollTop = 0;
    refresh(true);
  }

  function sortBy(column) {
    if (wanted.sort === column.id) wanted.order = wanted.order === "desc" ? "asc" : "desc";
    else [wanted.sort, wanted.order] = [column.id, column.first];
    change();
  }

  function inSight() {
    const height = Math.max(grid.clientHeight, ROW);
    const first = Math.max(0, Math.floor((grid.scrollTop - ROW) / ROW) - SPARE);
    return [first, Math.min(total, first + Math.ceil(height / ROW) + 2 * SPARE)];
  }

  const rowAt = (index) => pages.get(Math.floor(index / PAGE))?.[index % PAGE];

  function draw() {
    const [first, last] = inSight();
    while (rows.length < last - first) {
      const row = makeRow();
      rows.push(row);
    }
    setHeight(above, first * ROW);
    setHeight(below, Math.max(0, total - last) * ROW);
    for (let at = 0; at < last - first; at += 1) {
      const row = rows[at];
      if (!row.tr.isConnected) body.append(row.tr);
      fillRow(row, rowAt(first + at), first + at, first + at === active && answered);
    }
    while (body.childElementCount > last - first) body.lastElementChild.remove();
    COLUMNS.forEach((column, at) => {
      setAttribute(headers[at], "aria-sort", column.id === wanted.sort ? (wanted.order === "asc" ? "ascending" : "descending") : null);
    });
    setAttribute(grid, "aria-rowcount", String(total + 1));
    const inside = active >= first && active < last && answered;
    setAttribute(grid, "aria-activedescendant", inside ? `row-${active}` : null);
    setText(shown, !answered ? "" : `${count(total)} ${total === 1 ? "process" : "processes"}${paused ? ", paused" : ""}`);
    if (failed && !answered) replace(message, failure(failed, () => refresh(true)));
    else if (answered && total === 0) replace(message, nothing());
    else if (!answered) replace(message, h("p", { class: "busy", role: "status" }, "Asking the daemon…"));
    else replace(message);
  }

  function setHeight(cell, pixels) {
    const text = `${pixels}px`;
    if (cell.style.height !== text) cell.style.height = text;
    cell.parentElement.hidden = pixels === 0;
  }

  function nothing() {
    const clear = h("button", { type: "button", class: "button", onclick: () => clearFilters() }, "Show all processes");
    if (wanted.filter || wanted.state) return empty("No process matches", "The search looks at names, arguments, users, units and pids.", clear);
    return empty("No process yet", "The daemon has not finished its first look at this machine. That takes a few seconds after its start.");
  }

  function clearFilters() {
    wanted.filter = wanted.state = "";
    read(new URLSearchParams({ sort: wanted.sort, order: wanted.order }));
    change();
    grid.focus();
  }

  async function fetchPage(page, signal) {
    const answer = await get("/processes", { ...wanted, limit: PAGE, offset: page * PAGE }, { signal });
    return [page, answer];
  }

  /** Asks for the pages in sight; `anew` forgets what was shown once the answer is there. */
  async function refresh(anew = false) {
    clearTimeout(timer);
    asking?.abort();
    const mine = new AbortController();
    asking = mine;
    const [first, last] = anew ? [0, 1] : inSight();
    const needed = new Set([Math.floor(first / PAGE), Math.floor(Math.max(first, last - 1) / PAGE)]);
    try {
      const answers = await Promise.all([...needed].map((page) => fetchPage(page, mine.signal)));
      if (mine.signal.aborted) return;
      pages = new Map(answers.map(([page, answer]) => [page, answer.processes]));
      total = answers[0][1].total;
      failed = null;
      answered = true;
      followActive(answers);
    } catch (error) {
      if (aborted(error) || mine.signal.aborted) return;
      failed = error;
      if (anew) answered = false;
    }
    if (asking === mine) asking = null;
    draw();
    if (missing()) refresh();
    else plan();
  }

  /** The active row stays with its process as long as that is in sight, and does not scroll. */
  function followActive(answers) {
    active = Math.max(0, Math.min(active, total - 1));
    if (activeKey) {
      for (const [page, answer] of answers) {
        const at = answer.processes.findIndex((row) => keyOf(row) === activeKey);
        if (at >= 0) {
          active = page * PAGE + at;
          return;
        }
      }
    }
    const row = rowAt(active);
    activeKey = row ? keyOf(row) : null;
  }

  function missing() {
    const [first, last] = inSight();
    return answered && !failed && last > first && (!pages.has(Math.floor(first / PAGE)) || !pages.has(Math.floor((last - 1) / PAGE)));
  }

  function plan() {
    clearTimeout(timer);
    if (paused) return;
    timer = setTimeout(() => (document.hidden ? plan() : refresh()), EVERY);
  }

  let scrolled = null;
  function onScroll() {
    if (scrolled) return;
    scrolled = requestAnimationFrame(() => {
      scrolled = null;
      draw();
      if (missing() && !asking) refresh();
    });
  }

  function setActive(index) {
    active = Math.max(0, Math.min(index, total - 1));
    const row = rowAt(active);
    activeKey = row ? keyOf(row) : null;
    const head = ROW;
    const top = active * ROW;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + ROW + head > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + ROW + head - grid.clientHeight;
    draw();
  }

  function openActive() {
    const row = rowAt(active);
    if (row) location.assign(`#/p/${keyOf(row)}`);
  }

  function onKey(event) {
    if (event.target !== grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const far = Math.max(1, Math.floor(grid.clientHeight / ROW) - 2);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + far, PageUp: active - far, Home: 0, End: total - 1 }[event.key];
    if (to !== undefined) setActive(to);
    else if (event.key === "Enter") openActive();
    else return;
    event.preventDefault();
  }

  function togglePause() {
    paused = !paused;
    setAttribute(pause, "aria-pressed", String(paused));
    setText(pause, paused ? "Resume" : "Pause");
    if (paused) clearTimeout(timer);
    else refresh();
    draw();
  }

  read(opened.parameters);
  const returned = left?.question === JSON.stringify(wanted);
  if (returned) {
    ({ total, active, activeKey } = left);
    draw();
    grid.scrollTop = left.scrollTop;
  }
  draw();
  refresh(!returned);
  return {
    navigate: (again) => {
      read(again.parameters);
      refresh(true);
    },
    focus: () => grid.focus({ preventScroll: true }),
    close: () => {
      left = { question: JSON.stringify(wanted), total, active, activeKey, scrollTop: grid.scrollTop };
      clearTimeout(timer);
      clearTimeout(typing);
      asking?.abort();
      sized.disconnect();
    },
  };
}
