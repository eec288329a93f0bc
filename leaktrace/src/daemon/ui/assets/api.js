// Talks to the daemon. Every failure becomes an Error whose message can be shown as it is.

import { visible } from "./text.js";

const ROOT = "/api/v1";

async function explain(response) {
  let said = "";
  try {
    said = (await response.json()).error;
  } catch {
    // The status alone has to do.
  }
  const error = new Error(said ? visible(said, 1000) : `The daemon answered with status ${response.status}.`);
  error.status = response.status;
  return error;
}

async function ask(path, options, seconds, signal) {
  const limit = AbortSignal.timeout(seconds * 1000);
  let response;
  try {
    response = await fetch(path, {
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      ...options,
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
  } catch (cause) {
    if (signal?.aborted) throw cause;
    const late = cause.name === "TimeoutError";
    const error = new Error(
      late ? `The daemon did not answer within ${seconds} s.` : "The daemon cannot be reached. Is it running?",
    );
    error.unreachable = true;
    throw error;
  }
  if (response.status === 401) {
    location.assign("/login");
    throw await explain(response);
  }
  if (!response.ok) throw await explain(response);
  try {
    return await response.json();
  } catch (cause) {
    if (signal?.aborted) throw cause;
    throw new Error("The daemon's answer was cut short.");
  }
}

function query(parameters) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters ?? {})) {
    if (value !== undefined && value !== null && value !== "") search.set(name, value);
  }
  const text = search.toString();
  return text ? `?${text}` : "";
}

/** GET below `/api/v1`; `signal` ends it, and then it rejects with an AbortError. */
export function get(path, parameters, { signal, seconds = 20 } = {}) {
  return ask(`${ROOT}${path}${query(parameters)}`, {}, seconds, signal);
}

/** POST or DELETE below `/api/v1`. */
export function send(method, path, { seconds = 60 } = {}) {
  return ask(`${ROOT}${path}`, { method, headers: { "content-type": "application/json" } }, seconds);
}

/** An address below `/api/v1` for a link. */
export function address(path, parameters) {
  return `${ROOT}${path}${query(parameters)}`;
}

/** True for what `signal` caused: nobody has to hear of it. */
export function aborted(error) {
  return error?.name === "AbortError";
}
