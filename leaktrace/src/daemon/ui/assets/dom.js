// Elements, made without markup.
//
// Strings become text nodes and attributes, never markup; no other module may write markup either.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else if (name in element && !name.includes("-") && name !== "list" && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child != null && child !== false) element.append(child);
  }
  return element;
}

/** `h("p", {class: "note"}, "text", otherElement)`. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG; properties are attributes. */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  for (const child of children.flat()) element.append(child);
  return element;
}

/** Writes a text only if it changed, so that a refresh touches nothing that stayed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute only if it changed. */
export function setAttribute(element, name, value) {
  if (value == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Shows other children. */
export function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));
}

/** A row of buttons of which one is pressed. `options`: `[value, label, disabledReason?]`. */
export function choice(label, options, value, onchange) {
  const group = h("div", { class: "choice", role: "group", "aria-label": label });
  for (const [key, text, disabled] of options) {
    group.append(
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(key === value),
          disabled: Boolean(disabled),
          title: disabled || null,
          onclick: () => {
            for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.value === key));
            onchange(key);
          },
        },
        text,
      ),
    );
    group.lastChild.dataset.value = key;
  }
  return group;
}

/** A message in the place of content: what is missing, why, and what to do. */
export function empty(title, text, ...actions) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), text && h("p", {}, text), actions.length > 0 && h("p", { class: "actions" }, actions));
}

/** An error in words, with a way to try again. */
export function failure(error, again) {
  return h(
    "div",
    { class: "failure", role: "alert" },
    h("p", {}, error.message),
    again && h("p", { class: "actions" }, h("button", { type: "button", class: "button", onclick: again }, "Try again")),
  );
}

/** A place where something is being fetched. */
export function busy(text) {
  return h("p", { class: "busy", role: "status" }, text);
}
