"use strict";
/* Puts the page together from the embedded data. Needs every other script. */

function section(id, title, note) {
  const node = el(
    "section",
    { id },
    el("h2", { textContent: title }),
    note ? el("p", { className: "soft small", textContent: note }) : null,
  );
  document.querySelector("main").append(node);
  return node;
}

function tile(label, value, note) {
  return el(
    "div",
    { className: "card tile" },
    el("div", { className: "value", textContent: value }),
    el("div", { className: "label", textContent: label }),
    note ? el("div", { className: "label", textContent: note }) : null,
  );
}

function runSeconds(run) {
  return total(run, "time/step_s");
}

function lastOf(run, key) {
  const found = ends(run, key);
  return found ? found.last : null;
}

function change(pair, digits = 2) {
  return pair ? `${pair.first.toFixed(digits)} → ${pair.last.toFixed(digits)}` : "–";
}

function overview(data) {
  const host = section("overview", "Overview");
  if (data.runs.length === 1) {
    const run = data.runs[0];
    const seconds = runSeconds(run);
    const tokens = lastOf(run, "tokens_total");
    host.append(
      el(
        "div",
        { className: "tiles" },
        tile("held-out attempts solved", change(ends(run, "eval/solved")), "first → last evaluation"),
        tile("training attempts solved", change(tenths(run, "train/solved")), "first → last tenth of steps"),
        tile(
          "steps",
          `${number(Math.max(...run.metrics.step))}${run.config.steps ? ` of ${run.config.steps}` : ""}`,
        ),
        tile("time in steps", duration(seconds)),
        tile("rollouts", number(lastOf(run, "rollouts_total"))),
        tile(
          "sampled tokens",
          number(tokens),
          tokens && seconds ? `${number(tokens / seconds)} per second of step time` : null,
        ),
        tile("canary alerts", String(run.alerts.length)),
      ),
    );
  } else {
    host.append(comparison(data));
  }
  const alerts = data.runs.flatMap((run) => run.alerts.map((alert) => ({ run, alert })));
  if (alerts.length) host.append(alertList(alerts, data.runs.length > 1));
}

function alertList(alerts, showRun) {
  return el(
    "ul",
    { className: "alerts" },
    ...alerts.map(({ run, alert }) =>
      el(
        "li",
        {},
        el("span", {
          className: `badge ${alert.action === "warn" ? "warn" : "bad"}`,
          textContent: `${alert.canary.replaceAll("_", " ")}, ${alert.action}`,
        }),
        ` ${showRun ? run.name + ", " : ""}step ${alert.step}: ${alert.message} (since step ${alert.since})${
          Number.isInteger(alert.restored) ? `; went back to step ${alert.restored}` : ""
        }`,
      ),
    ),
  );
}

function comparison(data) {
  const rows = data.groups.map((group, g) => {
    const runs = group.runs.map((i) => data.runs[i]);
    const over = (read) => {
      const values = runs.map(read).filter((value) => value !== null && value !== undefined);
      return values.length ? moments(values).mean : null;
    };
    const pair = (reader, key) => {
      const first = over((run) => reader(run, key)?.first);
      return first === null ? "–" : change({ first, last: over((run) => reader(run, key)?.last) }, 3);
    };
    return el(
      "tr",
      {},
      el("td", {}, swatch(g), group.name),
      el("td", { className: "num", textContent: String(runs.length) }),
      el("td", { className: "num", textContent: pair(ends, "eval/solved") }),
      el("td", { className: "num", textContent: number(over((run) => ends(run, "eval/solved")?.best)) }),
      el("td", { className: "num", textContent: pair(tenths, "train/solved") }),
      el("td", { className: "num", textContent: number(over((run) => Math.max(...run.metrics.step))) }),
      el("td", { className: "num", textContent: duration(over(runSeconds) || 0) }),
      el("td", { className: "num", textContent: number(over((run) => lastOf(run, "rollouts_total"))) }),
      el("td", { className: "num", textContent: number(over((run) => lastOf(run, "tokens_total"))) }),
      el("td", { className: "num", textContent: String(runs.reduce((n, run) => n + run.alerts.length, 0)) }),
    );
  });
  const heads = [
    "Run",
    "Seeds",
    "Held out, first → last",
    "Best",
    "Training, first → last tenth",
    "Steps",
    "Time",
    "Rollouts",
    "Tokens",
    "Alerts",
  ];
  return el(
    "div",
    { className: "card scroll" },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el("tr", {}, ...heads.map((text, i) => el("th", { className: i ? "num" : "", textContent: text }))),
      ),
      el("tbody", {}, ...rows),
    ),
    el("p", { className: "soft small", textContent: "Seeds of the same settings are averaged." }),
  );
}

function swatch(index) {
  const node = el("span", { className: "swatch" });
  node.style.background = `var(--c${index % 8})`;
  return node;
}

function curves(data, groups) {
  const host = section(
    "curves",
    "Curves",
    groups.some((group) => group.runs.length > 1)
      ? "Lines are means over seeds, bands their 90% interval (Student's t). Dashed verticals: a canary fired."
      : "Thin lines are single steps, thick ones a centred moving mean with the 90% interval of that mean. Dashed verticals: a canary fired.",
  );
  const longest = Math.max(...data.runs.map((run) => run.metrics.step.length));
  const start = Math.max(1, 2 * Math.floor(longest / 40) + 1);
  const label = el("span", { textContent: `${start} steps` });
  const slider = el("input", {
    type: "range",
    min: 1,
    max: Math.max(3, 2 * Math.floor(longest / 6) + 1),
    step: 2,
    value: start,
    ariaLabel: "smoothing",
    oninput: () => {
      label.textContent = `${slider.value} steps`;
      charts.refresh({ window: Number(slider.value) });
    },
  });
  const axis = el(
    "select",
    { onchange: () => charts.refresh({ axis: axis.value }), ariaLabel: "horizontal axis" },
    ...Object.entries(AXES).map(([value, text]) => el("option", { value, textContent: text })),
  );
  host.append(
    el(
      "div",
      { className: "controls" },
      el("label", {}, "Smoothing", slider, label),
      el("label", {}, "Against", axis),
    ),
  );
  const legend = host.appendChild(el("div"));
  const charts = new Charts(host, groups, data);
  if (groups.length > 1) legend.replaceWith(charts.groupLegend());
  charts.refresh({ window: start });
  return charts;
}

function creditSection(data) {
  const items = data.runs.flatMap((run) => run.credit.map((row) => ({ run, row })));
  if (!items.length) return;
  const host = section(
    "credit",
    "Token credit",
    "Where the teacher, having read the feedback or a solved attempt, disagrees with what the student wrote. Point at a token for what either side would have said.",
  );
  const body = el("div", { className: "card detail" });
  const find = ({ run, row }) => {
    const group = run.groups.find(
      (one) => one.step === row.step && one.split === row.split && one.task === row.task,
    );
    return { group, rollout: group && group.rollouts.find((one) => one.index === row.index) };
  };
  const show = (item) => {
    const { group, rollout } = find(item);
    body.replaceChildren(
      rollout
        ? el(
            "div",
            {},
            el("h3", {}, "Verdict ", verdictBadge(rollout)),
            rollout.feedback ? el("pre", { className: "text", textContent: rollout.feedback }) : null,
          )
        : "",
      creditView(item.row),
      rollout
        ? el(
            "details",
            {},
            el("summary", { textContent: "Prompt and teacher's context" }),
            el(
              "div",
              { className: "sides2" },
              el("div", {}, el("h3", { textContent: "Prompt" }), ...messagesView(group.prompt, group.prompt)),
              teacherBlock(group, rollout),
            ),
          )
        : "",
    );
  };
  const name = ({ run, row }, i) => {
    const { rollout } = find(items[i]);
    const outcome = rollout ? `, ${rollout.category || (rollout.solved ? "solved" : "not solved")}` : "";
    return `${data.runs.length > 1 ? run.name + ", " : ""}step ${row.step}, ${row.task} #${row.index}${outcome}`;
  };
  const choice = el(
    "select",
    { ariaLabel: "attempt", onchange: () => show(items[Number(choice.value)]) },
    ...items.map((item, i) => el("option", { value: i, textContent: name(item, i) })),
  );
  const move = (by) => {
    choice.value = String((Number(choice.value) + by + items.length) % items.length);
    show(items[Number(choice.value)]);
  };
  host.append(
    el(
      "div",
      { className: "controls" },
      el("label", {}, "Attempt", choice),
      el("button", { textContent: "Previous", onclick: () => move(-1) }),
      el("button", { textContent: "Next", onclick: () => move(1) }),
    ),
    body,
  );
  const first = strongestFailure(items, find);
  choice.value = String(first);
  show(items[first]);
}

/* The failed attempt with feedback that the teacher disagreed with most: the method at work. */
function strongestFailure(items, find) {
  let best = 0;
  let size = -1;
  items.forEach((item, i) => {
    const { rollout } = find(item);
    const scale = creditScale(creditGaps(item.row));
    if (rollout && !rollout.solved && rollout.feedback && scale > size) [best, size] = [i, scale];
  });
  return best;
}

function rolloutSection(data) {
  const all = data.runs.reduce((sum, run) => sum + run.num_rollouts, 0);
  const shown = data.runs.reduce(
    (sum, run) => sum + run.groups.reduce((n, group) => n + group.rollouts.length, 0),
    0,
  );
  const host = section(
    "rollouts",
    "Rollouts",
    shown < all
      ? `${shown} of ${all} rollouts, spread evenly over the run to keep this file small; rollouts.jsonl has all of them.`
      : "",
  );
  if (!shown)
    return void host.append(el("p", { className: "soft", textContent: "This run recorded no rollouts." }));
  new RolloutBrowser(host, data.runs);
}

async function start() {
  let charts = null;
  let times = null;
  let redraw = () => {};
  const toggle = startTheme(() => redraw());
  const data = JSON.parse(await unpack("data"));
  const library = el("script", {
    nonce: document.currentScript?.nonce || document.querySelector("script[nonce]").nonce,
    textContent: await unpack("plotly"),
  });
  document.head.append(library);
  document.querySelector("#loading").remove();
  document.querySelector("nav button").addEventListener("click", toggle);
  const groups = data.groups.map((group) => ({
    name: group.name,
    runs: group.runs.map((i) => data.runs[i]),
  }));
  const found = discoverySection(data);
  if (data.runs.length) {
    overview(data);
    charts = curves(data, groups);
    creditSection(data);
    rolloutSection(data);
    times = costSection(data, groups);
    configSection(data);
  }
  redraw = () => [charts, times, found].forEach((part) => part && part.refresh({}));
  document.querySelectorAll("nav a").forEach((link) => {
    if (!document.querySelector(link.getAttribute("href"))) link.remove();
  });
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  document.querySelector("#loading").textContent =
    typeof DecompressionStream === "undefined"
      ? "This report needs a browser from 2023 or later."
      : `This report could not be shown: ${error.message}`;
  console.error(error);
});
