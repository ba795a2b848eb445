"use strict";
/* The rollout browser: filters, list, one attempt in full. Needs util.js and credit.js. */

const PAGE = 100;

function verdictBadge(rollout) {
  const name = rollout.category || (rollout.solved ? "solved" : "not solved");
  return el("span", {
    className: `badge ${rollout.solved ? "good" : name === "wrong_answer" ? "warn" : "bad"}`,
    textContent: name.replaceAll("_", " "),
  });
}

/* Every shown rollout of a run with its group, in file order. */
function flatRollouts(run, runIndex) {
  return run.groups.flatMap((group) => group.rollouts.map((rollout) => ({ run: runIndex, group, rollout })));
}

function creditKey(row) {
  return [row.step, row.split, row.task, row.index].join("\u0000");
}

function teacherMessages(group, rollout) {
  if (typeof rollout.teacher !== "number") return rollout.teacher;
  const source = group.rollouts.find((other) => other.index === rollout.teacher);
  return source ? source.teacher : null;
}

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el(
    "div",
    { className: "facts" },
    ...shown.map(([label, value]) => el("span", {}, `${label} `, el("b", { textContent: String(value) }))),
  );
}

function attemptText(rollout) {
  if (!rollout.turns) return [el("pre", { className: "text", textContent: rollout.text })];
  return rollout.turns
    .flatMap((turn) => [
      el(
        "div",
        { className: "message" },
        el("span", { className: "role", textContent: "assistant" }),
        el("pre", { className: "text", textContent: turn.text }),
      ),
      turn.reply
        ? el(
            "div",
            { className: "message" },
            el("span", { className: "role", textContent: turn.reply.role }),
            el("pre", { className: "text", textContent: String(turn.reply.content) }),
          )
        : null,
    ])
    .filter(Boolean);
}

function teacherBlock(group, rollout) {
  const messages = teacherMessages(group, rollout);
  const shown = [];
  if (rollout.demonstration !== null && rollout.demonstration !== undefined)
    shown.push(`demonstration: attempt ${rollout.demonstration}`);
  if (rollout.feedback_used) shown.push("own feedback");
  if (rollout.reason) shown.push(rollout.reason.replaceAll("_", " "));
  const title = messages ? "What the teacher reads instead of the prompt" : "No teacher context";
  return el(
    "div",
    {},
    el("h3", { textContent: shown.length ? `${title} (${shown.join(", ")})` : title }),
    ...messagesView(messages, group.prompt),
  );
}

function rolloutDetail(item, run, showRun) {
  const { group, rollout } = item;
  const credit = run.credit.find((row) => creditKey(row) === creditKey({ ...group, index: rollout.index }));
  const metrics = Object.entries(rollout.metrics || {}).map(([name, value]) => [name, number(value)]);
  return el(
    "div",
    { className: "card detail" },
    el(
      "div",
      {},
      el("h2", { textContent: `${group.task}, attempt ${rollout.index}` }),
      facts([
        ["run", showRun ? run.name : null],
        ["step", group.step],
        ["split", group.split],
        ["reward", number(rollout.reward)],
        ["prompt tokens", rollout.prompt_tokens],
        ["completion tokens", rollout.completion_tokens],
        ["teacher's prompt tokens", rollout.teacher_prompt_tokens],
        ["truncated", rollout.truncated ? "yes" : null],
        ["policy version", rollout.policy_version],
        ...metrics,
      ]),
    ),
    el(
      "div",
      { className: "sides2" },
      el(
        "div",
        {},
        el("h3", {}, "Completion ", verdictBadge(rollout)),
        ...attemptText(rollout),
        el("h3", { textContent: rollout.feedback ? "Feedback" : "No feedback" }),
        rollout.feedback ? el("pre", { className: "text", textContent: rollout.feedback }) : null,
      ),
      el(
        "div",
        {},
        el("h3", { textContent: "Prompt" }),
        ...messagesView(group.prompt, group.prompt),
        teacherBlock(group, rollout),
      ),
    ),
    credit ? el("div", {}, el("h3", { textContent: "Token credit" }), creditView(credit)) : null,
  );
}

class RolloutBrowser {
  constructor(host, runs) {
    this.runs = runs;
    this.items = runs.flatMap(flatRollouts);
    this.list = el("div", { className: "card list" });
    this.detail = el("div");
    this.count = el("span", { className: "soft small" });
    host.append(this.controls(), el("div", { className: "browser" }, this.list, this.detail));
    this.filter();
    if (this.found.length) this.show(this.firstInteresting());
  }

  controls() {
    const unique = (values) =>
      [...new Set(values)].sort((a, b) => String(a).localeCompare(String(b), undefined, { numeric: true }));
    const onchange = () => this.filter();
    const select = (label, values, names) =>
      el(
        "select",
        { onchange, ariaLabel: label },
        el("option", { value: "", textContent: `any ${label}` }),
        ...values.map((value, i) =>
          el("option", { value: String(value), textContent: names ? names[i] : value }),
        ),
      );
    const steps = this.items.map((item) => item.group.step);
    const bound = (label, value) =>
      el("input", {
        type: "number",
        value,
        onchange,
        ariaLabel: label,
        min: Math.min(...steps),
        max: Math.max(...steps),
      });
    this.fields = {
      run: select(
        "run",
        this.runs.map((_, i) => i),
        this.runs.map((run) => run.name),
      ),
      task: select("task", unique(this.items.map((item) => item.group.task))),
      outcome: select("outcome", [
        "solved",
        "failed",
        ...unique(this.items.map((item) => item.rollout.category || "")).filter(
          (name) => name && name !== "solved" && name !== "accepted",
        ),
      ]),
      split: select("split", unique(this.items.map((item) => item.group.split))),
      from: bound("first step", Math.min(...steps)),
      to: bound("last step", Math.max(...steps)),
      text: el("input", {
        type: "search",
        placeholder: "text in completion or feedback",
        oninput: onchange,
        ariaLabel: "text",
      }),
      credit: el("input", { type: "checkbox", onchange }),
    };
    const fields = this.fields;
    if (this.runs.length === 1) fields.run.hidden = true;
    return el(
      "div",
      { className: "controls" },
      fields.run,
      fields.task,
      fields.outcome,
      fields.split,
      el("label", {}, "steps", fields.from, "to", fields.to),
      fields.text,
      el("label", {}, fields.credit, "with token credit"),
      this.count,
    );
  }

  filter() {
    const { run, task, outcome, split, from, to, text, credit } = this.fields;
    const needle = text.value.toLowerCase();
    const credited = new Set(this.runs.flatMap((one, i) => one.credit.map((row) => i + creditKey(row))));
    const isOutcome = (rollout) =>
      !outcome.value ||
      (outcome.value === "solved"
        ? rollout.solved
        : outcome.value === "failed"
          ? !rollout.solved
          : rollout.category === outcome.value);
    this.found = this.items.filter(
      ({ run: index, group, rollout }) =>
        (!run.value || Number(run.value) === index) &&
        (!task.value || group.task === task.value) &&
        (!split.value || group.split === split.value) &&
        group.step >= Number(from.value) &&
        group.step <= Number(to.value) &&
        isOutcome(rollout) &&
        (!needle || `${rollout.text}\n${rollout.feedback || ""}`.toLowerCase().includes(needle)) &&
        (!credit.checked || credited.has(index + creditKey({ ...group, index: rollout.index }))),
    );
    this.count.textContent = `${this.found.length} of ${this.items.length} attempts`;
    this.list.replaceChildren();
    this.extend();
  }

  extend() {
    const start = this.list.querySelectorAll("button.item").length;
    this.list.querySelectorAll(".more").forEach((node) => node.remove());
    for (const item of this.found.slice(start, start + PAGE)) this.list.append(this.entry(item));
    if (this.found.length > start + PAGE)
      this.list.append(
        el(
          "div",
          { className: "more" },
          el("button", {
            textContent: `Show ${Math.min(PAGE, this.found.length - start - PAGE)} more`,
            onclick: () => this.extend(),
          }),
        ),
      );
    if (!this.found.length)
      this.list.append(
        el("div", { className: "more soft", textContent: "No attempt matches these filters." }),
      );
  }

  entry(item) {
    const { group, rollout } = item;
    const run = this.runs.length > 1 ? `${this.runs[item.run].name}, ` : "";
    return el(
      "button",
      { className: "item", onclick: () => this.show(item), ariaCurrent: String(item === this.current) },
      el("span", { className: "first", textContent: `${group.task} #${rollout.index}` }),
      verdictBadge(rollout),
      el("span", {
        className: "second",
        textContent: `${run}step ${group.step} ${group.split}, reward ${number(rollout.reward)}, ${rollout.completion_tokens} tokens`,
      }),
    );
  }

  show(item) {
    this.current = item;
    this.list
      .querySelectorAll("button.item")
      .forEach((node, i) => node.setAttribute("aria-current", String(this.found[i] === item)));
    this.detail.replaceChildren(rolloutDetail(item, this.runs[item.run], this.runs.length > 1));
  }

  /* A failed attempt with feedback and a teacher context says more about the method than the first line of the file. */
  firstInteresting() {
    return (
      this.found.find(({ rollout }) => !rollout.solved && rollout.feedback && rollout.teacher !== null) ||
      this.found[0]
    );
  }
}
