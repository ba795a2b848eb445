"use strict";
/* Where the time went and what the run cost. Needs util.js, series.js, charts.js. */

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

class CostSection {
  constructor(data) {
    this.host = section("cost", "Time and cost");
    this.choice = el("select", { ariaLabel: "run", onchange: () => this.redraw() });
    this.picker = el("div", { className: "controls" }, el("label", {}, "Run", this.choice));
    this.chart = new ChartCard({
      title: "Seconds per step by part",
      meaning:
        "Where a step's time goes. The teacher's pass is a part of its own and not counted in the update; evaluations lie outside the steps.",
      tall: true,
      controls: [this.picker],
      figure: () => this.figure(),
      table: () => this.seconds(),
    });
    this.costs = el("div", { className: "card scroll" });
    this.host.append(this.chart.node, this.costs);
    this.update(data);
  }

  update(data) {
    this.runs = data.runs;
    this.time = data.time;
    fillOptions(
      this.choice,
      this.runs.map((run, i) => [i, run.name]),
    );
    this.picker.hidden = this.runs.length === 1;
    this.chart.node.hidden = !this.runs.some((run) => total(run, this.time.whole));
    this.costs.replaceChildren(costTable(this.runs, this.time));
    this.redraw();
  }

  figure() {
    const run = this.runs[Number(this.choice.value)];
    const view = { axis: "step" };
    const traces = Object.entries(timeParts(run, this.time))
      .filter(([, values]) => sum(values) > 0)
      .map(([name, values], i) => ({
        type: "bar",
        name,
        x: run.metrics.step,
        y: values,
        marker: { color: seriesColor(i), line: { width: 0 } },
        hovertemplate: "%{y:.2f} s<extra>%{fullData.name}</extra>",
      }));
    const layout = panelLayout({ axis: "seconds", bounds: [0, null] }, [], view);
    return {
      traces,
      layout: wholeTicks({ ...layout, showlegend: true, barmode: "stack", bargap: 0 }, traces, view),
    };
  }

  seconds() {
    const rows = [["run", "step", "part", "seconds"]];
    for (const run of this.runs)
      for (const [name, values] of Object.entries(timeParts(run, this.time)))
        values.forEach((value, i) => rows.push([run.name, run.metrics.step[i], name, value]));
    return rows;
  }

  redraw() {
    this.chart.redraw();
  }
}

function costRow(run, time) {
  const seconds = runSeconds(run);
  const tokens = lastOf(run, "tokens_total");
  const parts = timeParts(run, time);
  const whole = sum(Object.values(parts).map(sum)) || 1;
  return { seconds, tokens, parts, whole };
}

function costTable(runs, time) {
  const names = [
    ...new Set(
      runs.flatMap((run) =>
        Object.entries(timeParts(run, time))
          .filter(([, values]) => sum(values) > 0)
          .map(([name]) => name),
      ),
    ),
  ];
  const heads = ["Run", ...names, "Total", "Seconds a step", "Tokens a second", "Rollouts", "Tokens", "Host"];
  const rows = runs.map((run) => {
    const cost = costRow(run, time);
    const steps = Math.max(1, (run.metrics[time.whole] || []).filter((value) => value !== null).length);
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
  const head = heads.map((text, i) =>
    el("th", { className: i && i < heads.length - 1 ? "num" : "", textContent: text }),
  );
  return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}
