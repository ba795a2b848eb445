"use strict";
/* What happened: sentences, numbers, the comparison of several runs, alerts. Needs util.js and series.js. */

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

/* The first words of the page: what happened. One run gets a card with the reasons, several a line each. */
function outcomeView(runs) {
  const isOne = runs.length === 1;
  const views = runs.map(({ name, outcome }) =>
    el(
      "div",
      { className: `${isOne ? "card " : ""}outcome ${outcome.tone}` },
      el(
        "p",
        { className: "headline" },
        isOne ? null : el("b", { textContent: `${name}: ` }),
        outcome.headline,
      ),
      ...outcome.details.map((textContent) => el("p", { className: "soft", textContent })),
    ),
  );
  return isOne ? views[0] : el("div", { className: "card outcomes" }, ...views);
}

class Overview {
  constructor(data) {
    this.host = section("overview", "Overview");
    this.body = this.host.appendChild(el("div"));
    this.update(data);
  }

  update(data) {
    this.body.replaceChildren();
    overview(this.body, data);
  }

  redraw() {}
}

function overview(host, data) {
  if (data.runs.length === 1) {
    host.append(outcomeView(data.runs));
    const run = data.runs[0];
    const seconds = runSeconds(run);
    const tokens = lastOf(run, "tokens_total");
    host.append(
      el(
        "div",
        { className: "tiles" },
        tile("held-out attempts solved", change(ends(run, "eval/solved")), "first → last evaluation"),
        trainingTile(run),
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
    host.append(comparison(data), outcomeView(data.runs));
  }
  const alerts = data.runs.flatMap((run) => run.alerts.map((alert) => ({ run, alert })));
  if (alerts.length) host.append(alertList(alerts, data.runs.length > 1));
}

/* A tenth of a handful of steps is one step, and chance. */
function trainingTile(run) {
  const found = ends(run, "train/solved");
  const label = "training attempts solved";
  if (!found) return tile(label, "–");
  if (found.count < 10) return tile(label, number(found.mean), `mean of ${plural(found.count, "step")}`);
  return tile(label, change(tenths(run, "train/solved")), "first → last tenth of steps");
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
  const isCompared = data.groups.some((group) => group.difference);
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
      ...(isCompared ? [el("td", { className: "num", textContent: group.difference ?? "" })] : []),
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
    ...(isCompared ? [`Held out, minus ${data.groups[0].name}`] : []),
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
    ...comparisonNotes(data, isCompared).map((textContent) => el("p", { className: "soft small", textContent })),
  );
}

function comparisonNotes(data, isCompared) {
  const notes = [];
  if (data.groups.some((group) => group.runs.length > 1)) notes.push("Seeds of the same settings are averaged.");
  if (isCompared) {
    notes.push("Differences are paired by tasks, and by seeds where both have them; [low, high] is 90%, as sdpo compare.");
  }
  return notes;
}

function swatch(index) {
  const node = el("span", { className: "swatch" });
  node.style.background = `var(--c${index % 8})`;
  return node;
}
