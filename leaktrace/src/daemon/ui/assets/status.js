// How the daemon itself does.

import { aborted, get } from "./api.js";
import { busy, empty, failure, h, replace } from "./dom.js";
import { ago, bytes, count, moment, percent, visible } from "./text.js";

const EVERY = 5000;

function meter(label, value, budget, write, note) {
  const share = budget > 0 ? value / budget : 0;
  const over = share > 1;
  const fill = h("div", { class: "meter-fill" });
  fill.style.width = `${Math.min(100, share * 100)}%`;
  return h(
    "div",
    { class: `meter ${over ? "over" : ""}` },
    h("span", { class: "muted" }, label),
    h("span", {}, h("strong", {}, write(value)), ` of ${write(budget)}${over ? ", over budget" : ""}`),
    h("div", { class: "meter-track", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": String(budget), "aria-valuenow": String(value), "aria-valuetext": `${write(value)} of ${write(budget)}` }, fill),
    h("span", { class: "muted" }, note),
  );
}

function card(title, ...body) {
  return h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, title)), h("div", { class: "card-body scroll-x" }, body));
}

function table(head, rows) {
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, head.map(([text, kind]) => h("th", { scope: "col", class: kind ?? null }, text)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) => h("td", { class: head[at][1] ?? null }, cell))))),
  );
}

function draw(now, decisions) {
  const { own, store } = now;
  const losses = now.losses.filter((loss) => loss.count > 0);
  return [
    h(
      "div",
      { class: "head" },
      h("div", { class: "head-text" }, h("h1", {}, "Status", h("small", {}, `leaktrace ${visible(now.version, 40)} on ${visible(now.host, 64)}`)), h("p", { class: "muted" }, `Running since ${moment(now.started)} (${ago(now.started)})`)),
    ),
    now.troubles.length > 0 && h("div", { role: "alert", class: "groups" }, now.troubles.map((trouble) => h("p", { class: "warn" }, visible(trouble, 1000)))),
    h(
      "div",
      { class: "budgets" },
      meter("Own CPU, last minute", own.cpu, own.cpu_budget, percent, "Share of one CPU that the daemon takes"),
      meter("Own memory", own.rss, own.rss_budget, bytes, "Resident bytes of the daemon"),
      meter("Probes in all targets", own.probes + own.growth, own.probes_budget, percent, "Share of one CPU that traced processes pay, and all processes for growth that is followed without probes"),
    ),
    h(
      "dl",
      { class: "figures" },
      [
        ["Watched", count(now.processes)],
        ["Traced", count(now.traced)],
        ["Stored profiles", count(store.profiles)],
        ["Store", bytes(store.bytes)],
        ["Not written", count(store.dropped)],
        ["Writing", store.paused ? "paused: disk full" : "goes on"],
      ].map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text))),
    ),
    card(
      "Losses since the start",
      losses.length === 0
        ? empty("Nothing was lost", "Every event of every traced process arrived and was counted.")
        : table([["Cause"], ["Times", "number"], ["What it means"]], losses.map((loss) => [h("code", {}, visible(loss.name, 100)), count(loss.count), visible(loss.meaning, 400)])),
    ),
    card(
      "Push targets",
      now.push.length === 0
        ? empty("No push target", "Profiles stay on this machine. To send them to a collector, add a [[push]] section to /etc/leaktrace.toml and reload the daemon.")
        : table(
            [["Target"], ["Sent", "number"], ["Failed", "number"], ["Given up", "number"], ["Waiting", "number"], ["Last error"]],
            now.push.map((target) => [visible(target.name, 100), count(target.sent), count(target.failed), count(target.dropped), count(target.queued), target.error ? h("span", { class: "rise" }, visible(target.error, 400)) : "none"]),
          ),
    ),
    card("Decisions", decisionTable(decisions, true)),
    h("p", { class: "note" }, "Other forms of these figures: ", h("a", { href: "/metrics" }, "metrics for Prometheus"), ", ", h("a", { href: "/api/v1/openapi.json" }, "the API's description"), ". Libraries of this page: ", h("a", { href: "/licenses.txt" }, "licences"), "."),
  ];
}

/** Decisions, newest first. */
export function decisionTable(decisions, named) {
  if (decisions.length === 0) return empty("Nothing decided yet", "A process is traced when a rule of the configuration names it, or when its anonymous memory grows fast for long enough.");
  const shown = decisions.slice(0, 100);
  return table(
    [["When"], ...(named ? [["Process"]] : []), ["What"], ["Why"]],
    shown.map((decision) => [
      h("span", { title: moment(decision.time) }, ago(decision.time)),
      ...(named ? [h("a", { class: "hostile", href: `#/p/${decision.process.pid}-${decision.process.start_time}` }, `${visible(decision.comm, 64)} (${decision.process.pid})`)] : []),
      visible(decision.action, 40),
      h("span", { class: "hostile" }, visible(decision.reason, 600)),
    ]),
  );
}

/** Opens the view in `root`. */
export function status(root, _opened, frame) {
  const view = h("div", { class: "process" }, busy("Asking the daemon…"));
  replace(root, view);
  const ended = new AbortController();
  let timer = null;
  let drawn = "";
  async function refresh() {
    clearTimeout(timer);
    if (!document.hidden) {
      try {
        const [now, said] = await Promise.all([get("/status", {}, { signal: ended.signal }), get("/decisions", {}, { signal: ended.signal })]);
        const decisions = Array.isArray(said) ? said : (said.decisions ?? []);
        // Only a change is drawn, and never under the keyboard's focus.
        const key = JSON.stringify([now, decisions.slice(0, 100)]);
        if (key !== drawn && !view.contains(document.activeElement) && !String(getSelection())) {
          drawn = key;
          replace(view, draw(now, decisions));
        }
      } catch (error) {
        if (aborted(error)) return;
        if (!drawn) replace(view, failure(error, refresh));
      }
    }
    if (!ended.signal.aborted) timer = setTimeout(refresh, EVERY);
  }
  refresh();
  return {
    escape: frame.back,
    close: () => {
      ended.abort();
      clearTimeout(timer);
    },
  };
}

