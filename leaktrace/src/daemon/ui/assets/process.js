// One process: who it is, why it is traced or not, how its memory went, and what holds it.

import { aborted, get, send } from "./api.js";
import { busy, empty, failure, h, replace, setAttribute, setText } from "./dom.js";
import { gcPanel, goroutinePanel, storedPanel, topPanel } from "./panels.js";
import { flamePanel } from "./stacks.js";
import { decisionTable } from "./status.js";
import { timeline } from "./timeline.js";
import { ago, bytes, count, moment, NONE, percent, signed, visible } from "./text.js";

const EVERY = 4000;

const TABS = [
  { id: "flame", label: "Flame graph", open: flamePanel },
  { id: "top", label: "Functions", open: topPanel },
  { id: "goroutines", label: "Goroutines", open: goroutinePanel, go: true },
  { id: "gc", label: "Garbage collector", open: gcPanel, go: true },
  { id: "profiles", label: "Stored profiles", open: storedPanel },
  { id: "decisions", label: "Decisions", open: null },
];

const STATE_WORDS = {
  watched: "Watched from outside, without probes.",
  traced: "Probes are in place.",
  refused: "It should be traced and cannot be.",
  detached: "Probes were taken away to keep the budget.",
  gone: "It ended a moment ago.",
};

/** The first digits of a long id; the whole of it on hovering, and in the API. */
function brief(id) {
  const whole = visible(id, 200);
  return h("abbr", { title: whole }, whole.length > 20 ? `${whole.slice(0, 16)}…` : whole);
}

/** Opens the view in `root`. */
export function process(root, opened, frame) {
  const { pid } = opened;
  let start = opened.start;
  let tab = opened.tab;
  let parameters = opened.parameters;
  let details = null;
  let timer = null;
  let panel = null;
  let panelTab = null;
  let acting = false;
  const ended = new AbortController();

  const view = h("article", { class: "process" }, busy("Asking the daemon…"));
  replace(root, view);

  const title = h("h1", { class: "hostile", tabindex: "-1" });
  const command = h("p", { class: "command hostile", title: "Click to see it whole", onclick: () => command.classList.toggle("open") });
  const buttons = h("div", { class: "actions" });
  const said = h("div", { class: "said", "aria-live": "polite" });
  const figures = h("dl", { class: "figures" });
  const facts = h("dl", { class: "facts" });
  const why = h("div", { class: "card-body" });
  const tablist = h("div", { class: "tabs", role: "tablist", "aria-label": "What holds the memory", onkeydown: onTabKey });
  const body = h("div", { role: "tabpanel", id: "panel", tabindex: "-1" });
  let chart = null;

  function link(toTab, changes) {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(changes ?? {})) if (value != null) search.set(name, value);
    const text = search.toString();
    return `#/p/${pid}${start ? `-${start}` : ""}/${toTab}${text ? `?${text}` : ""}`;
  }

  /** Keeps a choice in the address, without a step in the history. */
  function remember(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (value == null) parameters.delete(name);
      else parameters.set(name, value);
    }
    history.replaceState(null, "", link(tab || "flame", Object.fromEntries(parameters)));
  }

  const tabs = () => TABS.filter((one) => !one.go || details.runtime === "go");

  function build() {
    chart = timeline(pid, parameters, remember);
    replace(
      view,
      h("div", { class: "head" }, h("div", { class: "head-text" }, title, command, said), buttons),
      figures,
      h(
        "div",
        { class: "columns" },
        chart.element,
        h(
          "div",
          { class: "side" },
          h("section", { class: "card", "aria-labelledby": "why-title" }, h("div", { class: "card-head" }, h("h2", { id: "why-title" }, "Tracing")), why),
          h("section", { class: "card", "aria-labelledby": "who-title" }, h("div", { class: "card-head" }, h("h2", { id: "who-title" }, "Identity")), h("div", { class: "card-body" }, facts)),
        ),
      ),
      h("section", { class: "card" }, tablist, body),
    );
    replace(
      tablist,
      tabs().map((one) => h("button", { type: "button", role: "tab", id: `tab-${one.id}`, "aria-controls": "panel", onclick: () => openTab(one.id, true) }, one.label)),
    );
    tablist.firstChild.dataset.first = "";
    drawTab();
    title.focus({ preventScroll: true });
  }

  function openTab(id, push) {
    if (id === tab) return;
    tab = id;
    const range = parameters.get("range");
    parameters = new URLSearchParams(range ? { range } : {});
    const target = link(tab, Object.fromEntries(parameters));
    if (push) history.pushState(null, "", target);
    drawTab();
  }

  function drawTab() {
    const known = tabs();
    const chosen = known.find((one) => one.id === tab) ?? known[0];
    tab = chosen.id;
    for (const button of tablist.children) {
      const mine = button.id === `tab-${tab}`;
      setAttribute(button, "aria-selected", String(mine));
      setAttribute(button, "tabindex", mine ? "0" : "-1");
    }
    setAttribute(body, "aria-labelledby", `tab-${tab}`);
    panel?.close();
    panel = null;
    panelTab = tab;
    if (chosen.open) {
      panel = chosen.open({ pid, start, parameters, remember, link, untraced, isGo: details.runtime === "go" });
      replace(body, panel.element);
    } else drawDecisions();
  }

  function drawDecisions() {
    replace(body, h("div", { class: "panel scroll-x" }, decisionTable(details.decisions, false)));
  }

  function onTabKey(event) {
    const all = [...tablist.children];
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = all[(to + all.length) % all.length];
    next.focus();
    openTab(next.id.slice(4), true);
  }

  /**
   * What to show instead of a profile for a process that has none: one that is neither traced nor Go. With an error:
   * instead of that.
   */
  function untraced(error) {
    if (error && error.status !== 404 && error.status !== 409) return null;
    const { state, reason, suspect } = details.tracing;
    if (state === "traced" || (!error && (details.runtime === "go" || suspect))) return null;
    if (state === "gone") return empty("This process has ended", "What it held is in its stored profiles.", h("button", { type: "button", class: "button", onclick: () => openTab("profiles", true) }, "Stored profiles"));
    const sentences = [error?.message, visible(reason, 400)].filter(Boolean).map((text) => (/[.!?]$/.test(text) ? text : `${text}.`));
    return empty("This process is not traced", [...sentences, "Tracing shows which code holds its memory, from then on."].join(" "), traceButton(true));
  }

  function traceButton(primary) {
    const state = details.tracing.state;
    if (state === "gone") return null;
    if (state === "traced") return h("button", { type: "button", class: "button", "data-trace": "stop", onclick: () => act("DELETE"), disabled: acting }, "Stop tracing");
    return h("button", { type: "button", class: `button ${primary ? "primary" : ""}`, "data-trace": "start", onclick: () => act("POST"), disabled: acting }, "Start tracing");
  }

  async function act(method) {
    if (acting) return;
    acting = true;
    const starts = method === "POST";
    replace(said, h("p", { class: "note", role: "status" }, starts ? "Placing probes; this may take some seconds…" : "Taking probes away…"));
    drawButtons();
    let problem = null;
    try {
      const tracing = await send(method, `/processes/${pid}/trace`);
      details.tracing = tracing;
    } catch (error) {
      problem = error;
    }
    acting = false;
    if (ended.signal.aborted) return;
    replace(said, problem ? failure(problem) : h("p", { class: "note", role: "status" }, starts ? "It is traced from now on. What it allocated before is not included." : "It is watched from outside again."));
    await refresh();
    if (!problem && panelTab && panelTab !== "decisions") drawTab();
  }

  function drawButtons() {
    const key = `${details.tracing.state}|${acting}`;
    if (buttons.dataset.key === key) return;
    const focused = buttons.contains(document.activeElement);
    buttons.dataset.key = key;
    replace(buttons, h("a", { class: "button", href: "#/" , onclick: (event) => { event.preventDefault(); frame.back(); } }, "All processes"), traceButton(true));
    if (focused) buttons.querySelector("[data-trace]:not(:disabled), a")?.focus();
  }

  function pairs(list, entries) {
    const key = JSON.stringify(entries.map(([term, text]) => [term, typeof text === "string" ? text : text?.textContent]));
    if (list.dataset.key === key) return;
    list.dataset.key = key;
    const wrap = list === figures;
    replace(list, entries.flatMap(([term, text, kind]) => {
      const both = [h("dt", {}, term), h("dd", { class: `hostile ${kind ?? ""}` }, text)];
      return wrap ? [h("div", {}, both)] : both;
    }));
  }

  function draw() {
    const { memory, tracing } = details;
    const titleText = visible(details.comm, 64) || "(no name)";
    if (title.dataset.key !== `${titleText}${tracing.state}`) {
      title.dataset.key = `${titleText}${tracing.state}`;
      replace(title, titleText, h("small", {}, `pid ${pid}`), " ", h("small", {}, h("span", { class: `state ${visible(tracing.state)}` }, tracing.state)));
    }
    setText(command, visible(details.command_line.join(" "), 4200));
    drawButtons();
    const growth = memory.growth;
    pairs(figures, [
      ["Anonymous", bytes(memory.anonymous)],
      ["Growth per h", growth == null ? NONE : Math.abs(growth) < 1 ? "0 B" : signed(growth), growth > 1048576 ? "rise" : growth < -1048576 ? "fall" : ""],
      ["RSS", bytes(memory.rss)],
      ["Swap", bytes(memory.swap)],
      ["Tracked heap", bytes(memory.tracked)],
      ...(details.runtime === "go" ? [["Go heap", bytes(memory.go_heap)], ["Goroutines", count(memory.goroutines)]] : []),
      ["brk heap", bytes(memory.brk)],
      ["Major faults", count(memory.major_faults)],
    ]);
    pairs(facts, [
      ["Executable", visible(details.executable ?? "unknown", 1000), "mono"],
      ["Build ID", details.build_id ? brief(details.build_id) : "none", "mono"],
      ["Started", `${moment(details.started)} (${ago(details.started)})`],
      ["User", details.user ? `${visible(details.user, 64)} (${details.uid})` : String(details.uid)],
      ["Runtime", details.runtime === "go" ? visible(details.runtime_version ?? "Go", 64) : "machine code"],
      ...(details.unit ? [["Unit", visible(details.unit, 200)]] : []),
      ...(details.container ? [["Container", h("span", {}, `${visible(details.container.engine, 40)} `, brief(details.container.id)), "mono"]] : []),
      ...(details.cgroup ? [["Control group", visible(details.cgroup, 400), "mono"]] : []),
    ]);
    const whyKey = JSON.stringify(tracing);
    if (why.dataset.key !== whyKey) {
      why.dataset.key = whyKey;
      const words = [];
      if (tracing.cost != null) words.push(`Costs ${percent(tracing.cost)} of one CPU in this process`);
      if (tracing.hits != null) words.push(`${count(tracing.hits)} probe hits/s`);
      if (tracing.sample_interval != null) words.push(tracing.sample_interval <= 1 ? "every allocation is recorded" : `one sample per ${bytes(tracing.sample_interval)}`);
      replace(
        why,
        h("p", {}, h("span", { class: `state ${visible(tracing.state)}` }, tracing.state), h("span", { class: "muted" }, ` since ${moment(tracing.since)}`)),
        h("p", { class: "why-text hostile" }, visible(tracing.reason, 1000) || STATE_WORDS[tracing.state]),
        words.length > 0 && h("p", { class: "why-text muted" }, `${words.join(", ")}.`),
        tracing.suspect && h("p", { class: "why-text hostile" }, `Its growth is followed by stack, without probes: ${visible(tracing.suspect, 1000)}.`),
      );
    }
  }

  async function refresh() {
    clearTimeout(timer);
    if (!document.hidden || !details) {
      try {
        const next = await get(`/processes/${pid}`, {}, { signal: ended.signal });
        if (start && next.start_time !== start) {
          replace(view, empty("That process has ended", `Pid ${pid} belongs to another process now: ${visible(next.comm, 64)}.`, h("a", { class: "button primary", href: `#/p/${pid}-${next.start_time}` }, "Open that one"), h("a", { class: "button", href: "#/" }, "All processes")));
          stop();
          return;
        }
        const first = !details;
        const newDecisions = !first && details.decisions[0]?.time !== next.decisions[0]?.time;
        details = next;
        if (first) {
          // The address names the process, not only its pid, from here on.
          start = next.start_time;
          history.replaceState(null, "", link(tab || "flame", Object.fromEntries(parameters)));
          draw();
          build();
        } else draw();
        if (newDecisions && panelTab === "decisions") drawDecisions();
      } catch (error) {
        if (aborted(error)) return;
        if (!details) {
          replace(view, error.status === 404 ? empty("No such process", `${error.message}.`, h("a", { class: "button primary", href: "#/" }, "All processes")) : failure(error, refresh));
          if (error.status === 404) return;
        } else if (error.status === 404) {
          details.tracing = { ...details.tracing, state: "gone", reason: "The process has ended. Its stored profiles stay.", cost: null, hits: null };
          draw();
          return;
        }
      }
    }
    if (!ended.signal.aborted) timer = setTimeout(refresh, EVERY);
  }

  function stop() {
    ended.abort();
    clearTimeout(timer);
    chart?.close();
    panel?.close();
  }

  refresh();
  return {
    key: () => `p/${pid}-${start}`,
    navigate: (again) => {
      parameters = again.parameters;
      tab = again.tab;
      if (details && view.contains(tablist)) drawTab();
    },
    escape: frame.back,
    close: stop,
  };
}
