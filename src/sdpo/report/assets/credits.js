"use strict";
/* The section of token credit: attempts by how much student and teacher disagree, and what the teacher had read. Needs
   credit.js and attempt.js. */

/* Mean absolute gap of the trained tokens, nats. */
function disagreement(row) {
  const sizes = creditGaps(row)
    .filter((_, i) => !row.trained || row.trained[i])
    .map(Math.abs);
  return sizes.length ? sizes.reduce((a, b) => a + b, 0) / sizes.length : 0;
}

const CREDIT_ORDERS = {
  size: ["disagreement", (a, b) => b.size - a.size],
  step: ["step", (a, b) => a.step - b.step],
  task: ["task", (a, b) => a.task.localeCompare(b.task) || a.step - b.step],
};

class CreditSection {
  constructor(data) {
    this.host = section(
      "credit",
      "Token credit",
      "Where the teacher, having read the feedback or a solved attempt, disagrees with what the student wrote. Point at a token for what either side would have said.",
    );
    this.open = () => {};
    this.current = null;
    this.choice = el("select", { ariaLabel: "attempt", onchange: () => this.showChosen() });
    this.order = el("select", { ariaLabel: "order of attempts", onchange: () => this.list() });
    fillOptions(
      this.order,
      Object.entries(CREDIT_ORDERS).map(([value, [text]]) => [value, text]),
    );
    this.body = el("div", { className: "card detail" });
    const move = (by) =>
      el("button", {
        type: "button",
        textContent: by < 0 ? "Previous" : "Next",
        onclick: () => this.move(by),
      });
    this.host.append(
      el(
        "div",
        { className: "controls" },
        el("label", {}, "Attempt", this.choice),
        move(-1),
        move(1),
        el("label", {}, "sorted by", this.order),
      ),
      this.body,
    );
    this.update(data);
    const failed = this.items.findIndex(({ rollout }) => rollout && !rollout.solved);
    this.choice.value = attemptKey(this.items[Math.max(0, failed)]);
    this.showChosen();
  }

  update(data) {
    this.runs = data.runs;
    this.items = data.runs.flatMap((run, r) =>
      run.credit.map((row) => {
        const { step, split, task, index } = row;
        const group = run.groups.find((one) => one.step === step && one.split === split && one.task === task);
        const rollout = group && group.rollouts.find((one) => one.index === index);
        return { run: r, step, split, task, index, row, group, rollout, size: disagreement(row) };
      }),
    );
    this.list();
  }

  list() {
    this.items.sort(CREDIT_ORDERS[this.order.value][1]);
    fillOptions(
      this.choice,
      this.items.map((item) => [attemptKey(item), this.name(item)]),
    );
  }

  name({ run, step, task, index, rollout, size }) {
    const parts = [
      `${size.toFixed(2)} nats`,
      this.runs.length > 1 ? this.runs[run].name : null,
      `step ${step}`,
      `${task} #${index}`,
      rollout ? verdictName(rollout) : null,
    ];
    return parts.filter(Boolean).join(" · ");
  }

  move(by) {
    const at = this.items.findIndex((item) => attemptKey(item) === this.choice.value);
    this.choice.value = attemptKey(this.items[(at + by + this.items.length) % this.items.length]);
    this.showChosen();
  }

  showChosen() {
    const item = this.items.find((one) => attemptKey(one) === this.choice.value);
    const { group, rollout } = item;
    this.body.replaceChildren(rollout ? this.context(item, group, rollout) : "", creditView(item.row));
  }

  /* The judge's verdict beside what the teacher read. */
  context(item, group, rollout) {
    const isRead = rollout.sources.includes("feedback");
    return el(
      "div",
      { className: "sides2" },
      el(
        "div",
        {},
        el(
          "div",
          { className: "heading" },
          el("h3", {}, "The judge: ", verdictBadge(rollout)),
          copyLink(item, this.runs),
          el("button", {
            className: "ghost",
            type: "button",
            textContent: "open attempt",
            onclick: () => this.open(item),
          }),
        ),
        rollout.feedback && !isRead
          ? el("p", { className: "soft small", textContent: "Its feedback, which the teacher did not read:" })
          : null,
        rollout.feedback && !isRead ? el("pre", { className: "text", textContent: rollout.feedback }) : null,
        el(
          "details",
          {},
          el("summary", { textContent: "Prompt" }),
          ...messagesView(group.prompt, group.prompt),
        ),
      ),
      teacherReading(group, rollout, (other) => this.open({ ...item, index: other.index })),
    );
  }

  redraw() {}
}
