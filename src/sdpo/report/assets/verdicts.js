"use strict";
/* Which verdicts the attempts got, over the run. Needs util.js, series.js and charts.js. */

const SPLITS = { train: "training", eval: "held out" };
const FEW_STEPS = 12;

/* Shares of the categories at each of the recorded steps: [{name, isSolved, y: [...]}], solved ones first. */
function verdictShares(verdicts) {
  const columns = verdicts.categories;
  const totals = verdicts.step.map((_, i) => columns.reduce((total, [, counts]) => total + counts[i], 0));
  return columns.map(([name, counts]) => ({
    name: name.replaceAll("_", " "),
    isSolved: verdicts.solved.includes(name),
    y: counts.map((count, i) => (totals[i] ? count / totals[i] : 0)),
  }));
}

/* Where the recorded steps lie on an axis; steps that were averaged away in the metrics take the next row's place. */
function stepPositions(run, steps, axis) {
  const xs = axisValues(run, axis);
  return steps.map((step) => {
    const row = run.metrics.step.findIndex((other) => other >= step);
    return axis === "step" ? step : xs[row < 0 ? xs.length - 1 : row];
  });
}

class VerdictChart {
  constructor(data, view) {
    this.view = view;
    this.run = el("select", { ariaLabel: "run of the verdicts", onchange: () => this.redraw() });
    this.split = el("select", { ariaLabel: "split of the verdicts", onchange: () => this.redraw() });
    this.chart = new ChartCard({
      title: "Verdicts",
      tall: true,
      meaning:
        "Share of the attempts of each verdict category. Solved ones are at the bottom. A category that grows shows what the policy does wrong now; truncated or malformed attempts that grow are a warning.",
      controls: [el("div", { className: "controls" }, this.run, this.split)],
      figure: () => this.figure(),
      table: () => this.table(),
    });
    this.update(data);
  }

  update(data) {
    this.runs = data.runs;
    fillOptions(
      this.run,
      this.runs.map((run, i) => [i, run.name]),
    );
    const splits = Object.keys(SPLITS).filter((name) => this.runs.some((run) => run.verdicts[name]));
    fillOptions(
      this.split,
      splits.map((name) => [name, SPLITS[name]]),
    );
    this.run.hidden = this.runs.length === 1;
    this.chart.node.hidden = !splits.length;
  }

  shown() {
    const run = this.runs[Number(this.run.value)];
    return { run, verdicts: run.verdicts[this.split.value] };
  }

  figure() {
    const { run, verdicts } = this.shown();
    const panel = { axis: "share of attempts", bounds: [0, 1] };
    const layout = { ...panelLayout(panel, [], this.view), showlegend: true };
    layout.legend = { ...layout.legend, traceorder: "normal" };
    if (!verdicts) return { traces: [], layout };
    const x = stepPositions(run, verdicts.step, this.view.axis);
    const isFew = x.length < FEW_STEPS;
    const failed = ["--c1", "--c3", "--c4", "--c5", "--c6", "--c7", "--c0"];
    let used = 0;
    const traces = verdictShares(verdicts).map(({ name, isSolved, y }) => {
      const color = cssVar(isSolved ? "--c2" : failed[used++ % failed.length]);
      const hover = { name, x, y, hovertemplate: "%{y:.0%}<extra>%{fullData.name}</extra>" };
      return isFew
        ? { ...hover, type: "bar", marker: { color, line: { width: 0 } } }
        : {
            ...hover,
            type: "scatter",
            mode: "lines",
            stackgroup: "all",
            line: { width: 0.5, color },
            fillcolor: transparent(color, 0.75),
          };
    });
    layout.yaxis.range = [0, 1];
    if (isFew) Object.assign(layout, { barmode: "stack", bargap: 0.15 });
    return { traces, layout: wholeTicks(layout, traces, this.view) };
  }

  table() {
    const rows = [["run", "split", "step", "category", "attempts"]];
    for (const run of this.runs)
      for (const [split, { step, categories }] of Object.entries(run.verdicts))
        for (const [name, counts] of categories)
          counts.forEach((count, i) => rows.push([run.name, split, step[i], name, count]));
    return rows;
  }

  redraw() {
    this.chart.redraw();
  }
}
