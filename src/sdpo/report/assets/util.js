"use strict";
/* Small helpers. Everything a run wrote is untrusted: text enters the page through textContent only. */

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent.trim());
  const bytes = Uint8Array.from(binary, (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e9) return (value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(3) + "k";
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (seconds < 60) return seconds.toFixed(1) + " s";
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/* Saves `content`, a string or a data URL, as a file of the reader's. */
function download(name, content) {
  const isUrl = content.startsWith("data:");
  const href = isUrl ? content : URL.createObjectURL(new Blob([content], { type: "text/csv;charset=utf-8" }));
  el("a", { href, download: name.replaceAll(/[^\w.-]+/g, "-") }).click();
  if (!isUrl) setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/* Rows as comma-separated values. Strings that a spreadsheet would run as a formula get an apostrophe: a model wrote them. */
function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    /* Not every browser lets a page from a file use the clipboard. */
    const field = el("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

/* A button that copies what `read` returns and says so. */
function copyButton(label, read) {
  const button = el("button", { className: "ghost", type: "button", textContent: label });
  button.addEventListener("click", async () => {
    await copyText(read());
    button.textContent = "copied";
    setTimeout(() => (button.textContent = label), 1200);
  });
  return button;
}

/* A heading with a question mark behind it that shows `meaning`, by pointer or by click. */
function explained(title, meaning, ...after) {
  const note = el("p", { className: "note", textContent: meaning, hidden: true });
  const mark = el("button", {
    className: "ghost help",
    type: "button",
    textContent: "?",
    title: meaning,
    ariaLabel: `what ${title} means`,
    ariaExpanded: "false",
  });
  mark.addEventListener("click", () => {
    note.hidden = !note.hidden;
    mark.ariaExpanded = String(!note.hidden);
  });
  return [el("div", { className: "heading" }, el("h3", { textContent: title }), mark, ...after), note];
}

/* Options of a select, [value, text]; what was chosen stays chosen if it is still there. */
function fillOptions(select, options) {
  const values = options.map(([value]) => String(value));
  const chosen = select.value;
  const same = [...select.options].map((option) => `${option.value} ${option.textContent}`).join("\u0000");
  if (same === options.map(([value, text]) => `${value} ${text}`).join("\u0000")) return;
  select.replaceChildren(...options.map(([value, textContent]) => el("option", { value, textContent })));
  if (values.includes(chosen)) select.value = chosen;
}

const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

function cssVar(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function startTheme(onChange) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const apply = () => {
    document.documentElement.dataset.theme = chosen || (dark.matches ? "dark" : "light");
    onChange();
  };
  dark.addEventListener("change", apply);
  apply();
  return () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    apply();
  };
}

/* Messages of a conversation. What `base` (the prompt) already says is dimmed, so that additions stand out. */
function messagesView(messages, base) {
  const known = new Map((base || []).map((message) => [message.role, String(message.content)]));
  return (messages || []).map((message) => {
    const content =
      typeof message.content === "string" ? message.content : JSON.stringify(message.content, null, 2);
    const start = known.get(message.role);
    const text = el("pre", { className: "text" });
    if (start && content.startsWith(start) && base !== messages) {
      text.append(el("span", { className: "same", textContent: start }), content.slice(start.length));
    } else {
      text.textContent = content;
    }
    return el(
      "div",
      { className: "message" },
      el("span", { className: "role", textContent: message.role }),
      text,
    );
  });
}
