// Words and numbers as the page writes them.
//
// Every string that comes from a process goes through `visible` before it is shown: it may hold anything.

// Controls, bidirectional overrides and marks, invisible characters, tags, lone surrogates, private use.
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udfff]/g;
// More than four combining marks in a row paint over their neighbours.
const STACKED = /(\p{M}{4})\p{M}+/gu;
const SHORT = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function escape(digits) {
  return digits.length > 4 ? `\\u{${digits}}` : `\\u${digits.padStart(4, "0")}`;
}

/** A string with everything in it that would not be seen written as an escape. */
export function visible(value, limit = 4000) {
  let text = String(value ?? "");
  if (text.length > limit) text = `${text.slice(0, limit)}…`;
  return text
    .replace(HIDDEN, (c) => SHORT[c] ?? escape(c.codePointAt(0).toString(16)))
    .replace(STACKED, "$1\ufffd");
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
export const NONE = "–";

/** Bytes with three significant digits at least: `4 B`, `1.25 MiB`, `512 MiB`. */
export function bytes(value) {
  if (value == null || !Number.isFinite(Number(value))) return NONE;
  const number = Number(value);
  let size = Math.abs(number);
  let unit = 0;
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
  return `${number < 0 ? "−" : ""}${size.toFixed(digits)} ${UNITS[unit]}`;
}

/** Bytes with their sign. */
export function signed(value, write = bytes) {
  if (value == null) return NONE;
  return value > 0 ? `+${write(value)}` : write(value);
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A number with its thousands apart. */
export function count(value) {
  return value == null ? NONE : WHOLE.format(value).replace("-", "−");
}

/** A share: 0.0123 is `1.23 %`. */
export function percent(share) {
  if (share == null || !Number.isFinite(share)) return NONE;
  const value = share * 100;
  const digits = Math.abs(value) < 10 ? 2 : Math.abs(value) < 99.95 ? 1 : 0;
  return `${value.toFixed(digits).replace("-", "−")} %`;
}

/** A duration of nanoseconds in its largest two units. */
export function duration(nanoseconds) {
  if (nanoseconds == null) return NONE;
  const ns = Number(nanoseconds);
  if (ns < 1e3) return `${ns} ns`;
  if (ns < 1e6) return `${(ns / 1e3).toFixed(ns < 1e5 ? 1 : 0)} µs`;
  if (ns < 1e9) return `${(ns / 1e6).toFixed(ns < 1e8 ? 1 : 0)} ms`;
  const seconds = ns / 1e9;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.floor(seconds) % 60, "s"],
  ];
  const first = parts.findIndex(([n]) => n > 0);
  return parts
    .slice(first, first + 2)
    .filter(([n]) => n > 0)
    .map(([n, unit]) => `${n} ${unit}`)
    .join(" ");
}

const two = (n) => String(n).padStart(2, "0");

/** A moment (nanoseconds since 1970) in local time; with the day when it is not today. */
export function moment(nanoseconds, now = Date.now()) {
  if (!nanoseconds) return NONE;
  const at = new Date(Number(nanoseconds) / 1e6);
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const today = new Date(now);
  if (at.toDateString() === today.toDateString()) return clock;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock}`;
}

/** How long ago a moment was. */
export function ago(nanoseconds) {
  const since = Date.now() * 1e6 - Number(nanoseconds);
  return since < 1e9 ? "now" : `${duration(since)} ago`;
}

/** A place in a program, without its function. */
export function place(frame) {
  if (!frame?.file) return "";
  return visible(frame.line ? `${frame.file}:${frame.line}` : frame.file, 500);
}
