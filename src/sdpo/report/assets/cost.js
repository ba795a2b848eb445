"use strict";
/* Where the time went, what the run cost, and which settings it had. Needs util.js, series.js, charts.js. */

/* Seconds per part; what is measured inside a part is taken out of it, what a step does besides is "other". */
function timeParts(run, time) {
  const column = (name) => (run.metrics[name] || []).map((value) => value || 0);
  const parts = {};
  for (const { name, metric, without } of time.parts) {
    const inside = without.map(column).filter((values) => values.length);
    parts[name] = column(metric).map((value, i) =>
      inside.reduce((rest, values) => Math.max(0, rest - values[i]), value),
    );
  }
  parts.other = column(time.whole).map((value, i) =>
    Object.values(parts).reduce((rest, values) => Math.max(0, rest - (values[i] || 0)), value),
  );
  return parts;
}

const sum = (values) => values.reduce((a, b) => a + b, 0);

class TimeChart {
  constructor(plot, run, time) {
    this.plot = plot;
    this.time = time;
    this.run = run;
    plot.entry = { dirty: true };
    this.observer = new IntersectionObserver((seen) => seen.some((e) => e.isIntersecting) && this.draw(), {
      rootMargin: "400px",
    });
    this.observer.observe(plot);
  }

  refresh() {
    this.plot.entry.dirty = true;
    this.observer.unobserve(this.plot);
    this.observer.observe(this.plot);
  }

  show(run) {
    this.run = run;
    this.refresh();
  }

  draw() {
    if (!this.plot.entry.dirty) return;
    this.plot.entry.dirty = false;
    const traces = Object.entries(timeParts(this.run, this.time))
      .filter(([, values]) => sum(values) > 0)
      .map(([name, values], i) => ({
        type: "bar",
        name,
        x: this.run.metrics.step,
        y: values,
        marker: { color: seriesColor(i), line: { width: 0 } },
        hovertemplate: "%{y:.2f} s<extra>%{fullData.name}</extra>",
      }));
    const layout = panelLayout({ axis: "seconds", bounds: [0, null] }, [], { axis: "step" });
    Plotly.react(
      this.plot,
      traces,
      { ...layout, showlegend: true, barmode: "stack", bargap: 0 },
      PLOT_CONFIG,
    );
  }
}

function costRow(run, time) {
  const seconds = runSeconds(run);
  const tokens = lastOf(run, "tokens_total");
  const parts = timeParts(run, time);
  const whole = sum(Object.values(parts).map(sum)) || 1;
  return { seconds, tokens, parts, whole };
}

function costSection(data, groups) {
  const host = section("cost", "Time and cost");
  const plot = el("div", { className: "plot tall" });
  const chart = new TimeChart(plot, data.runs[0], data.time);
  const choice = el(
    "select",
    { ariaLabel: "run", onchange: () => chart.show(data.runs[Number(choice.value)]) },
    ...data.runs.map((run, i) => el("option", { value: i, textContent: run.name })),
  );
  const names = [
    ...new Set(
      data.runs.flatMap((run) =>
        Object.entries(timeParts(run, data.time))
          .filter(([, values]) => sum(values) > 0)
          .map(([name]) => name),
      ),
    ),
  ];
  const heads = ["Run", ...names, "Total", "Seconds a step", "Tokens a second", "Rollouts", "Tokens", "Host"];
  const rows = data.runs.map((run) => {
    const cost = costRow(run, data.time);
    const steps = Math.max(1, (run.metrics["time/step_s"] || []).filter((value) => value !== null).length);
    const cells = [
      ...names.map((name) =>
        cost.parts[name]
          ? `${duration(sum(cost.parts[name]))}, ${((100 * sum(cost.parts[name])) / cost.whole).toFixed(0)}%`
          : "–",
      ),
      duration(cost.whole),
      number(cost.seconds / steps),
      cost.tokens && cost.seconds ? number(cost.tokens / cost.seconds) : "–",
      number(lastOf(run, "rollouts_total")),
      number(cost.tokens),
    ];
    return el(
      "tr",
      {},
      el("td", { textContent: run.name }),
      ...cells.map((text) => el("td", { className: "num", textContent: text })),
      el("td", { textContent: run.host || "" }),
    );
  });
  host.append(
    el(
      "div",
      { className: "card chart" },
      data.runs.length > 1 ? el("div", { className: "controls" }, el("label", {}, "Run", choice)) : null,
      el("h3", { textContent: "Seconds per step by part" }),
      plot,
    ),
    el(
      "div",
      { className: "card scroll" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            ...heads.map((text, i) =>
              el("th", { className: i && i < heads.length - 1 ? "num" : "", textContent: text }),
            ),
          ),
        ),
        el("tbody", {}, ...rows),
      ),
    ),
  );
  return chart;
}

function configSection(data) {
  const host = section("config", "Settings");
  const keys = [...new Set(data.runs.flatMap((run) => Object.keys(run.config)))].sort();
  const text = (value) =>
    value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);
  const differs = (key) => new Set(data.runs.map((run) => JSON.stringify(run.config[key]))).size > 1;
  const table = (shown, mark) =>
    el(
      "div",
      { className: "scroll" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { textContent: "Key" }),
            ...data.runs.map((run) => el("th", { textContent: run.name })),
          ),
        ),
        el(
          "tbody",
          {},
          ...shown.map((key) =>
            el(
              "tr",
              { className: mark && differs(key) ? "differs" : "" },
              el("td", {}, el("code", { textContent: key })),
              ...data.runs.map((run) => el("td", { textContent: text(run.config[key]) })),
            ),
          ),
        ),
      ),
    );
  const facts = [
    "model.name",
    "env.type",
    "env.tasks",
    "objective.type",
    "objective.divergence.type",
    "teacher.schedule.type",
    "teacher.context.layout",
    "teacher.context.demonstration",
    "teacher.context.feedback",
    "rollout.tasks_per_step",
    "rollout.group_size",
    "rollout.max_completion_tokens",
    "optim.lr",
    "seed",
  ].filter((key) => keys.includes(key));
  const card = el("div", { className: "card" });
  if (!keys.length)
    card.append(el("p", { className: "soft", textContent: "No config.json in the run directory." }));
  else if (data.runs.length > 1)
    card.append(el("h3", { textContent: "What differs" }), table(keys.filter(differs), false));
  else card.append(table(facts, false));
  if (keys.length)
    card.append(
      el("details", {}, el("summary", { textContent: `All ${keys.length} settings` }), table(keys, true)),
    );
  for (const run of data.runs) {
    if (run.facts.length)
      card.append(el("p", { className: "soft small", textContent: `${run.name}: ${run.facts.join(", ")}` }));
  }
  host.append(card);
}
