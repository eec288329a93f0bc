// A tree of stacks as the flame graph needs it: typed columns, and objects for the library. No element is touched here.

import { visible } from "./text.js";

/** Deepest row that is drawn. */
export const MAX_DEPTH = 512;

/**
 * What each node weighs. `all`: what it holds; `grew` and `shrank`: of a difference, the part that did so. A node is as
 * wide as what is below it in that sense, so that growth and decline do not hide each other.
 */
export function weigh(stacks, side) {
  const size = stacks.nodes.length;
  const weight = new Float64Array(size);
  const depth = new Int32Array(size);
  for (let at = 0; at < size; at += 1) {
    const { own, parent } = stacks.nodes[at];
    weight[at] = side === "shrank" ? Math.max(0, -own) : Math.max(0, own);
    depth[at] = at === 0 ? 0 : depth[parent] + 1;
  }
  for (let at = size - 1; at > 0; at -= 1) weight[stacks.nodes[at].parent] += weight[at];
  return { weight, depth };
}

/** Places for all nodes with a weight: widest first among the children of one. */
export function layOut(stacks, side, colorOf, nameOf) {
  const { weight, depth } = weigh(stacks, side);
  const size = stacks.nodes.length;
  const order = [];
  for (let at = 1; at < size; at += 1) if (weight[at] > 0 && depth[at] < MAX_DEPTH) order.push(at);
  order.sort((a, b) => depth[a] - depth[b] || weight[b] - weight[a]);
  const made = new Array(size);
  const filled = new Float64Array(size);
  let deepest = 0;
  let hidden = 0;
  for (let at = 1; at < size; at += 1) if (weight[at] > 0 && depth[at] >= MAX_DEPTH) hidden += 1;
  const root = { name: nameOf(0), start: 0, duration: weight[0], color: colorOf(0), children: [], id: 0, parent: null, depth: 0 };
  made[0] = root;
  for (const at of order) {
    const parent = made[stacks.nodes[at].parent];
    const node = {
      name: nameOf(at),
      start: parent.start + filled[parent.id],
      duration: weight[at],
      color: colorOf(at),
      children: [],
      id: at,
      parent,
      depth: depth[at],
    };
    filled[parent.id] += weight[at];
    parent.children.push(node);
    made[at] = node;
    if (depth[at] > deepest) deepest = depth[at];
  }
  return { root, made, rows: deepest + 1, shown: order.length, hidden };
}

/** Names of frames, made harmless once each. */
export function frameNames(stacks) {
  return stacks.frames.map((frame) => visible(frame.function, 1000) || "(no name)");
}

/** What groups functions by colour: the package, crate or namespace. */
export function family(name) {
  const plain = name.replace(/[<({[].*$/, "");
  const go = plain.lastIndexOf("/");
  const rest = plain.slice(go + 1);
  const cut = rest.search(/::|\./);
  return cut > 0 ? plain.slice(0, go + 1 + cut) : plain.slice(0, 6);
}

/** A number for a text, the same each time. */
export function hash(text) {
  let value = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) value = Math.imul(value ^ text.charCodeAt(at), 0x01000193);
  return value >>> 0;
}
