// The frame around the views: addresses, keys, theme, and the line that tells whether the daemon answers.

import { aborted, get } from "./api.js";
import { replace, setAttribute, setText } from "./dom.js";
import { listAddress, processes } from "./processes.js";
import { process } from "./process.js";
import { status } from "./status.js";
import { count, percent, visible } from "./text.js";

const content = document.getElementById("content");
const STATUS_EVERY = 10_000;

/** What the address asks for: `#/`, `#/status`, `#/p/PID-START/TAB`, each with `?name=value`. */
function route() {
  const [path, search = ""] = location.hash.replace(/^#/, "").split("?");
  const [view = "", key = "", tab = ""] = path.split("/").slice(1);
  const parameters = new URLSearchParams(search);
  if (view === "status") return { name: "status", key: "status", open: status, parameters };
  if (view === "p") {
    const [pid, start] = key.split("-").map(Number);
    if (Number.isInteger(pid) && pid > 0 && pid < 2 ** 32) {
      return { name: "process", key: `p/${key}`, open: process, pid, start: start || null, tab, parameters };
    }
  }
  return { name: "processes", key: "processes", open: processes, parameters };
}

let current = null;
let currentKey = null;

function show() {
  // The skip link changes the hash; it is not an address.
  if (location.hash === "#content") return;
  const wanted = route();
  setAttribute(document.getElementById("nav-processes"), "aria-current", wanted.name === "processes" ? "page" : wanted.name === "process" ? "true" : null);
  setAttribute(document.getElementById("nav-status"), "aria-current", wanted.name === "status" ? "page" : null);
  // A process that was asked for by pid alone has learnt its full name since.
  if (current && (currentKey === wanted.key || current.key?.() === wanted.key)) {
    current.navigate?.(wanted);
    return;
  }
  current?.close();
  replace(content);
  content.scrollTop = 0;
  currentKey = wanted.key;
  current = wanted.open(content, wanted, { back: () => location.assign(listAddress) });
  if (document.activeElement === document.body || !document.activeElement) content.focus({ preventScroll: true });
  current.focus?.();
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (content.querySelector("[data-first]") ?? content).focus();
});

const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());
document.getElementById("theme").addEventListener("click", () => globalThis.leaktraceTheme.toggle());

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing) {
    const search = content.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  } else if (event.key === "?" && !typing) {
    event.preventDefault();
    keys.showModal();
  } else if (event.key === "Escape") {
    if (typing && event.target.type === "search") {
      if (event.target.value) {
        event.target.value = "";
        event.target.dispatchEvent(new Event("input", { bubbles: true }));
      } else {
        (content.querySelector("[data-first]") ?? content).focus();
      }
      event.preventDefault();
    } else if (!typing && current?.escape) {
      event.preventDefault();
      current.escape();
    }
  }
});

const offline = document.getElementById("offline");
async function watchDaemon() {
  if (!document.hidden) {
    try {
      const now = await get("/status", {}, { seconds: 8 });
      offline.hidden = true;
      setText(
        document.getElementById("machine"),
        `${visible(now.host, 64)} · ${count(now.processes)} processes, ${count(now.traced)} traced · own cost ${percent(now.own.cpu)} of a CPU`,
      );
      const badge = document.getElementById("troubles");
      badge.hidden = now.troubles.length === 0;
      setText(badge, String(now.troubles.length));
      badge.setAttribute("aria-label", `, ${now.troubles.length} troubles`);
      document.title = `leaktrace · ${visible(now.host, 64)}`;
      document.dispatchEvent(new CustomEvent("daemonstatus", { detail: now }));
    } catch (error) {
      if (!aborted(error)) {
        offline.hidden = false;
        setText(offline, `${error.message} What is shown may be old.`);
      }
    }
  }
  setTimeout(watchDaemon, STATUS_EVERY);
}

window.addEventListener("hashchange", show);
show();
watchDaemon();
