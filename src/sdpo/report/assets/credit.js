"use strict";
/* Token credit of one attempt: a line of credit.jsonl as coloured text. Needs util.js. */

const MAX_SHADE = 0.62; /* Opacity of the strongest colour; the text on it must stay readable in both themes. */
const MAX_OVER_USUAL = 2;
const SMALLEST_SCALE = 0.5; /* Nats: below, colours would show rounding instead of disagreement. */

function creditGaps(row) {
  return row.teacher_logprob.map((q, i) => (q === null ? -20 : q) - (row.student_logprob[i] ?? -20));
}

/* The 97th percentile of the absolute gaps, so that a single extreme token does not bleach all others; in a short
   attempt, where that is the second largest, up to twice as much. As in report/credit.py. */
function creditScale(gaps) {
  const sizes = gaps.map(Math.abs).sort((a, b) => a - b);
  if (!sizes.length) return SMALLEST_SCALE;
  const usual = sizes[Math.floor((sizes.length - 1) * 0.97)];
  return Math.max(SMALLEST_SCALE, Math.min(sizes.at(-1), MAX_OVER_USUAL * usual));
}

function shade(value, scale) {
  const alpha = Math.min(1, Math.abs(value) / scale) * MAX_SHADE;
  return `rgba(var(--${value < 0 ? "neg" : "pos"}), ${alpha.toFixed(3)})`;
}

function tokenName(row, id) {
  const text = row.texts[id];
  return text === undefined || text === "" ? `⟨${id}⟩` : text;
}

function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "␣");
}

function tokenSpan(row, i, color) {
  const span = el("span", { className: "tok" });
  const text = tokenName(row, row.token_ids[i]);
  for (const part of text.split(/(\n)/)) {
    if (part === "\n") span.append(el("span", { className: "mark", textContent: "↵" }), "\n");
    else if (part) span.append(part);
  }
  if (row.trained && !row.trained[i]) span.classList.add("untrained");
  else span.style.backgroundColor = color;
  span.dataset.i = i;
  return span;
}

function alternatives(row, flat, taken) {
  const box = el("div");
  for (let i = 0; i < (flat || []).length; i += 2) {
    const probability = Math.exp(flat[i + 1]);
    const fill = el("div", { className: "fill" });
    fill.style.width = `${(probability * 100).toFixed(1)}%`;
    box.append(
      el(
        "div",
        { className: flat[i] === taken ? "alt taken" : "alt" },
        fill,
        el("code", { textContent: visible(tokenName(row, flat[i])) }),
        el("span", { textContent: percent(probability) }),
      ),
    );
  }
  return box;
}

function percent(probability) {
  if (probability >= 0.0995) return `${(probability * 100).toFixed(0)}%`;
  if (probability >= 0.001) return `${(probability * 100).toFixed(1)}%`;
  return "<0.1%";
}

function signed(value) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
}

function tokenTip(row, gaps, i) {
  const id = row.token_ids[i];
  const side = (title, logprob, entropy, top) =>
    el(
      "div",
      {},
      el("h3", { textContent: title }),
      alternatives(row, top, id),
      el("div", {
        className: "soft small",
        textContent: `this token ${percent(Math.exp(logprob ?? -20))}, entropy ${number(entropy, 2)}`,
      }),
    );
  return el(
    "div",
    {},
    el(
      "div",
      {},
      el("code", { textContent: visible(tokenName(row, id)) }),
      ` token ${i + 1} of ${gaps.length}, gap `,
      el("b", { textContent: signed(gaps[i]) }),
    ),
    el(
      "div",
      { className: "sides" },
      side("Student would say", row.student_logprob[i], row.student_entropy[i], row.student_top[i]),
      side("Teacher would say", row.teacher_logprob[i], row.teacher_entropy[i], row.teacher_top[i]),
    ),
  );
}

/* What either side would have said, at the bottom of the window on the side away from the pointer: over the lines that
   are being read it would hide them. */
function attachTips(panes, row, gaps) {
  let tip = null;
  const hide = () => {
    if (tip) tip.remove();
    tip = null;
    panes.querySelectorAll(".tok.on").forEach((span) => span.classList.remove("on"));
  };
  const show = (event) => {
    const span = event.target.closest(".tok");
    hide();
    if (!span) return;
    panes.querySelectorAll(`.tok[data-i="${span.dataset.i}"]`).forEach((same) => same.classList.add("on"));
    const box = span.getBoundingClientRect();
    const isRight = box.left > window.innerWidth / 2;
    tip = el(
      "div",
      { className: `tip ${isRight ? "left" : "right"}` },
      tokenTip(row, gaps, Number(span.dataset.i)),
    );
    document.body.append(tip);
    const isHidden = box.bottom > window.innerHeight - tip.offsetHeight - 16;
    const isNarrow = tip.offsetWidth > window.innerWidth / 2 - 16;
    if (isHidden && isNarrow) tip.classList.add("top");
  };
  panes.addEventListener("mouseover", show);
  panes.addEventListener("click", show);
  panes.addEventListener("mouseleave", hide);
  window.addEventListener("scroll", hide, { passive: true });
}

/* The tokens the two sides disagree about most; readable without a pointer. */
function largestGaps(row, gaps, count) {
  const order = gaps.map((gap, i) => [Math.abs(gap), i]).filter(([, i]) => !row.trained || row.trained[i]);
  order.sort((a, b) => b[0] - a[0]);
  const body = el("tbody");
  for (const [, i] of order.slice(0, count)) {
    const before = row.token_ids
      .slice(Math.max(0, i - 4), i)
      .map((id) => tokenName(row, id))
      .join("");
    const best = row.teacher_top[i] && row.teacher_top[i].length ? row.teacher_top[i] : null;
    body.append(
      el(
        "tr",
        {},
        el(
          "td",
          {},
          el("span", { className: "soft", textContent: visible(before) }),
          el("code", { textContent: visible(tokenName(row, row.token_ids[i])) }),
        ),
        el("td", { className: "num", textContent: signed(gaps[i]) }),
        el("td", {
          className: "num",
          textContent: `${percent(Math.exp(row.student_logprob[i] ?? -20))} → ${percent(Math.exp(row.teacher_logprob[i] ?? -20))}`,
        }),
        el(
          "td",
          {},
          best ? el("code", { textContent: visible(tokenName(row, best[0])) }) : "",
          best ? ` ${percent(Math.exp(best[1]))}` : "",
        ),
      ),
    );
  }
  const head = el(
    "thead",
    {},
    el(
      "tr",
      {},
      el("th", { textContent: "Token in context" }),
      el("th", { className: "num", textContent: "Gap" }),
      el("th", { className: "num", textContent: "Student → teacher" }),
      el("th", { textContent: "Teacher prefers" }),
    ),
  );
  return el("div", { className: "scroll" }, el("table", {}, head, body));
}

function creditView(row) {
  const gaps = creditGaps(row);
  const scale = creditScale(gaps);
  const trained = gaps.filter((_, i) => !row.trained || row.trained[i]);
  const sizes = trained.map(Math.abs).sort((a, b) => b - a);
  const total = sizes.reduce((a, b) => a + b, 0);
  const tenth = sizes.slice(0, Math.max(1, Math.round(sizes.length / 10))).reduce((a, b) => a + b, 0);
  const ours = el("div", { className: "tokens", tabIndex: 0 });
  const theirs = el("div", { className: "tokens", tabIndex: 0 });
  const advantage = row.advantage ?? 0;
  gaps.forEach((gap, i) => {
    ours.append(tokenSpan(row, i, shade(gap, scale)));
    theirs.append(tokenSpan(row, i, shade(advantage, 1)));
  });
  const panes = el(
    "div",
    { className: "credit-panes" },
    el("div", {}, el("h3", { textContent: "Self-distillation: log q − log p of each token" }), ours),
    el(
      "div",
      {},
      el("h3", {
        textContent:
          row.advantage === null || row.advantage === undefined
            ? "GRPO: no group, no advantage"
            : `GRPO: advantage ${signed(advantage)} for every token`,
      }),
      theirs,
    ),
  );
  attachTips(panes, row, gaps);
  const legend = el(
    "div",
    { className: "legend" },
    el("span", { textContent: `teacher disagrees −${scale.toFixed(1)}` }),
    el("span", { className: "bar" }),
    el("span", { textContent: `+${scale.toFixed(1)} approves (nats)` }),
    el("span", {
      textContent:
        total > 0 ? `The largest tenth of the tokens holds ${percent(tenth / total)} of the credit.` : "",
    }),
  );
  return el(
    "div",
    { className: "credit" },
    legend,
    panes,
    el(
      "details",
      { open: false },
      el("summary", { textContent: "Tokens they disagree about most" }),
      largestGaps(row, gaps, 8),
    ),
  );
}
