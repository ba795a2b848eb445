"use strict";
/* Which settings the runs had and where they differ. Needs util.js. */

/* Settings do not change while a run goes on. */
class ConfigSection {
  constructor(data) {
    configSection(section("config", "Settings"), data);
  }

  update() {}

  redraw() {}
}

function configSection(host, data) {
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
