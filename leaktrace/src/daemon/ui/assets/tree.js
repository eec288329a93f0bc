// A tree of stacks in columns, and the part of it that a view of some pixels can show. No element is touched here.
//
// A profile may have hundreds of thousands of nodes, a view has room for some thousands. Whatever is asked here costs
// one pass over the columns at most, or only the nodes in sight.

/** Deepest row that is drawn. */
const MAX_DEPTH = 512;
/** Narrowest node that is drawn, in pixels. */
const NARROWEST = 0.5;

/** What groups functions by colour: the package, crate or namespace. */
export function family(name) {
  const plain = name.replace(/[<({[].*$/s, "");
  const go = plain.lastIndexOf("/");
  const cut = plain.slice(go + 1).search(/::|\./);
  return cut > 0 ? plain.slice(0, go + 1 + cut) : plain.slice(0, 6);
}

/** A number for a text, the same each time. */
export function hash(text) {
  let value = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) value = Math.imul(value ^ text.charCodeAt(at), 0x01000193);
  return value >>> 0;
}

export class Tree {
  /**
   * `side`: what a node weighs. `all`: what it holds; `grew` and `shrank`: of a difference, the part that did so. A node
   * is as wide as what is below it in that sense, so that growth and decline do not hide each other.
   */
  constructor(stacks, side) {
    const { nodes } = stacks;
    const size = nodes.length;
    this.parent = new Uint32Array(size);
    this.frame = new Uint32Array(size);
    this.own = new Float64Array(size);
    this.total = new Float64Array(size);
    this.depth = new Uint32Array(size);
    this.weight = new Float64Array(size);
    const first = new Uint32Array(size + 1);
    const sign = side === "shrank" ? -1 : 1;
    for (let at = 0; at < size; at += 1) {
      const node = nodes[at];
      // Parents stand before their children; anything else would be no tree.
      const parent = at === 0 || node.parent >= at ? 0 : node.parent;
      this.parent[at] = parent;
      this.frame[at] = node.frame;
      this.own[at] = node.own;
      this.total[at] = node.total;
      this.weight[at] = Math.max(0, sign * node.own);
      this.depth[at] = at === 0 ? 0 : this.depth[parent] + 1;
    }
    this.shown = 0;
    this.hidden = 0;
    for (let at = size - 1; at > 0; at -= 1) {
      const parent = this.parent[at];
      this.weight[parent] += this.weight[at];
      if (this.weight[at] > 0) {
        first[parent + 1] += 1;
        this.shown += 1;
        if (this.depth[at] >= MAX_DEPTH) this.hidden += 1;
      }
    }
    for (let at = 0; at < size; at += 1) first[at + 1] += first[at];
    const next = first.slice(0, size);
    this.below = new Uint32Array(this.shown);
    for (let at = 1; at < size; at += 1) {
      if (this.weight[at] > 0) this.below[next[this.parent[at]]++] = at;
    }
    this.first = first;
    this.sorted = new Uint8Array(size);
  }

  /** Children with a weight, heaviest first. */
  children(at) {
    const part = this.below.subarray(this.first[at], this.first[at + 1]);
    if (!this.sorted[at]) {
      this.sorted[at] = 1;
      const { weight } = this;
      part.sort((a, b) => weight[b] - weight[a] || a - b);
    }
    return part;
  }

  /** Whether `above` is `at` or one of its callers. */
  isAbove(above, at) {
    let node = at;
    while (this.depth[node] > this.depth[above]) node = this.parent[node];
    return node === above;
  }

  /** Weight of what lies left of a node, within `top`, which is above it. */
  start(at, top) {
    let sum = 0;
    for (let node = at; node !== top; node = this.parent[node]) {
      for (const brother of this.children(this.parent[node])) {
        if (brother === node) break;
        sum += this.weight[brother];
      }
    }
    return sum;
  }

  /**
   * What a view on `top` shows in `width` pixels, as the library wants it: callers of `top` over the whole width, then
   * all below it that is wide enough.
   */
  view(top, width, nameOf, colorOf) {
    const { weight, depth } = this;
    const make = (id, start, duration) => ({ id, name: nameOf(id), color: colorOf(id), start, duration, children: [] });
    const path = [];
    for (let node = top; ; node = this.parent[node]) {
      path.push(node);
      if (node === 0) break;
    }
    path.reverse();
    const data = path.map((id) => make(id, 0, weight[top]));
    for (let at = 1; at < data.length; at += 1) data[at - 1].children.push(data[at]);
    const least = (weight[top] * NARROWEST) / width;
    let rows = depth[top] + 1;
    let drawn = data.length;
    const open = [data.at(-1)];
    while (open.length > 0) {
      const node = open.pop();
      let start = node.start;
      if (depth[node.id] + 1 >= MAX_DEPTH) continue;
      for (const child of this.children(node.id)) {
        if (weight[child] < least) break;
        const made = make(child, start, weight[child]);
        start += weight[child];
        node.children.push(made);
        open.push(made);
        drawn += 1;
        rows = Math.max(rows, depth[child] + 1);
      }
    }
    return { root: data[0], rows, drawn };
  }

  /** How much lies at or below frames that match, each part counted once, and in how many nodes. */
  found(matches) {
    const inside = new Uint8Array(this.parent.length);
    let weight = 0;
    let number = 0;
    for (let at = 1; at < inside.length; at += 1) {
      if (inside[this.parent[at]]) inside[at] = 1;
      else if (matches[this.frame[at]] && this.weight[at] > 0) {
        inside[at] = 1;
        weight += this.weight[at];
        number += 1;
      }
    }
    return { weight, number, share: this.weight[0] ? weight / this.weight[0] : 0 };
  }
}
