"use strict";
/* Test-time searches: discovery@k of each method and a table of the tasks. Needs util.js, charts.js and report.js. */

/* One chart per discovery run: the share of searches that had solved their task by attempt k. */
function discoveryTraces(summary) {
  const methods = Object.keys(summary.curves).sort(
    (a, b) => (b === "self_distillation") - (a === "self_distillation") || a.localeCompare(b),
  );
  return methods.flatMap((name, i) => {
    const points = summary.curves[name];
    const color = seriesColor(i);
    const x = summary.ks;
    return [
      {
        type: "scatter",
        mode: "lines",
        x: [...x, ...[...x].reverse()],
        y: [...points.map((p) => p.high), ...points.map((p) => p.low).reverse()],
        fill: "toself",
        fillcolor: transparent(color, 0.16),
        line: { width: 0 },
        hoverinfo: "skip",
        showlegend: false,
      },
      {
        type: "scatter",
        mode: "lines",
        name: name.replaceAll("_", " "),
        x,
        y: points.map((p) => p.mean),
        line: { color, width: 2 },
        hovertemplate: "%{y:.2f}<extra>%{fullData.name}</extra>",
      },
    ];
  });
}

function discoveryFigure(summary) {
  const layout = panelLayout({ axis: "share of searches solved", bounds: [0, 1] }, [], { axis: "step" });
  layout.xaxis = {
    ...layout.xaxis,
    type: "log",
    tickvals: Array.from({ length: 12 }, (_, i) => 4 ** i),
    title: { ...layout.xaxis.title, text: "attempts" },
  };
  return { traces: discoveryTraces(summary), layout: { ...layout, showlegend: true } };
}

function discoveryRows(summary) {
  const rows = [["method", "k", "solved", "low", "high"]];
  for (const [name, points] of Object.entries(summary.curves))
    points.forEach((point, i) => rows.push([name, summary.ks[i], point.mean, point.low, point.high]));
  return rows;
}

function table(heads, rows) {
  const cell = (tag, text, i) => el(tag, { className: i > 1 ? "num" : "", textContent: text });
  return el(
    "div",
    { className: "scroll" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...heads.map((text, i) => cell("th", text, i)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((text, i) => cell("td", text, i))))),
    ),
  );
}

/* What self-distillation gained over another method, in a sentence. */
function gainOver(name, { difference, speed_up }) {
  const gap = `${difference.mean >= 0 ? "+" : ""}${difference.mean.toFixed(2)} [${difference.low.toFixed(2)}, ${difference.high.toFixed(2)}]`;
  const faster = speed_up
    ? ` It reached ${speed_up.probability.toFixed(2)} after ${number(speed_up.attempts)} attempts instead of ${number(speed_up.baseline_attempts)} (${number(speed_up.factor)} times fewer).`
    : "";
  return `Self-distillation against ${name.replaceAll("_", " ")} at ${number(difference.k)} attempts: ${gap}.${faster}`;
}

class DiscoverySection {
  constructor(data) {
    this.host = section(
      "discovery",
      "Discovery",
      "Share of searches that have solved their task by attempt k. Bands: interval over tasks and repetitions.",
    );
    this.body = this.host.appendChild(el("div"));
    this.update(data);
  }

  update(data) {
    this.charts = data.discoveries.map(
      ({ name, summary }) =>
        new ChartCard({
          title: `${name} (bands: ${Math.round(100 * summary.level)}%)`,
          meaning:
            "discovery@k: the share of searches whose first solved attempt came at attempt k or before. A curve further left needs fewer attempts.",
          tall: true,
          figure: () => discoveryFigure(summary),
          table: () => discoveryRows(summary),
        }),
    );
    this.body.replaceChildren(
      ...this.charts.flatMap(({ node }, i) => [node, discoveryTable(data.discoveries[i].summary)]),
    );
    this.redraw();
  }

  redraw() {
    this.charts.forEach((chart) => chart.redraw());
  }
}

/* What was gained over other methods, and every task. */
function discoveryTable(summary) {
  return el(
    "div",
    { className: "card" },
    ...Object.entries(summary.against).map(([other, gain]) =>
      el("p", { className: "small", textContent: gainOver(other, gain) }),
    ),
    table(
      ["Task", "Method", "Solved", "Median attempts", "Attempts", "Time"],
      summary.tasks.map((row) => [
        row.task_id,
        row.method.replaceAll("_", " "),
        `${row.solved}/${row.searches}${row.stopped ? ` (${row.stopped} stopped)` : ""}`,
        number(row.median_attempts),
        number(row.attempts),
        duration(row.seconds),
      ]),
    ),
  );
}
