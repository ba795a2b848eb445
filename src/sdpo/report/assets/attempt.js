"use strict";
/* One attempt: its verdict, its text, what the teacher read about it, its address. Needs util.js and credit.js. */

function verdictName(rollout) {
  return (rollout.category || (rollout.solved ? "solved" : "not solved")).replaceAll("_", " ");
}

function verdictBadge(rollout) {
  const name = verdictName(rollout);
  return el("span", {
    className: `badge ${rollout.solved ? "good" : name === "wrong answer" ? "warn" : "bad"}`,
    textContent: name,
  });
}

/* What tells an attempt from all others of the page. */
function attemptKey({ run, step, split, task, index }) {
  return [run, step, split, task, index].join("\u0000");
}

/* The address of an attempt within the page, as `step=12&split=train&task=clamp&index=3`; with several runs also the run. */
function attemptHash({ run, step, split, task, index }, runs) {
  const named = runs.length > 1 ? { run: runs[run].name } : {};
  return `#${new URLSearchParams({ ...named, step, split, task, index })}`;
}

/* The attempt that an address names, or null. */
function attemptOfHash(hash, runs) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  if (!["step", "split", "task", "index"].every((name) => values.has(name))) return null;
  const run = values.has("run") ? runs.findIndex((one) => one.name === values.get("run")) : 0;
  const [step, index] = [Number(values.get("step")), Number(values.get("index"))];
  return { run, step, split: values.get("split"), task: values.get("task"), index };
}

function copyLink(item, runs) {
  return copyButton("copy link", () => location.href.split("#")[0] + attemptHash(item, runs));
}

function teacherMessages(group, rollout) {
  if (typeof rollout.teacher !== "number") return rollout.teacher;
  const source = group.rollouts.find((other) => other.index === rollout.teacher);
  return source ? source.teacher : null;
}

/* What the teacher read besides the task; the names are those of `TeacherContext.sources`. */
const SOURCES = {
  sibling: ({ demonstration }) => `attempt ${demonstration}'s solution`,
  own: () => "this very attempt as a solution",
  reference: () => "the task's own reference solution",
  other_task: () => "another task's solution (a control)",
  feedback: () => "the feedback on this attempt",
  experience: () => "what was said about failed attempts at such tasks",
  turn_feedback: () => "what was said about its turns",
  attempt: () => "the attempt itself",
  plain: () => "nothing but the task (a control)",
};

function readingText(group, rollout) {
  if (!teacherMessages(group, rollout))
    return `The teacher read nothing about this attempt${rollout.reason ? `: ${rollout.reason.replaceAll("_", " ")}` : ""}.`;
  const parts = rollout.sources.map((name) => (SOURCES[name] ? SOURCES[name](rollout) : name));
  const last = parts.pop();
  return `The teacher read ${parts.length ? `${parts.join(", ")} and ${last}` : last}.`;
}

/* The texts the teacher read, as far as they are attempts and feedback of this group, and the whole context folded away.
   `open` shows another attempt of the group. */
function teacherReading(group, rollout, open) {
  const source =
    rollout.demonstration === null
      ? null
      : group.rollouts.find((other) => other.index === rollout.demonstration);
  const isFed = rollout.sources.includes("feedback") && rollout.feedback;
  const messages = teacherMessages(group, rollout);
  return el(
    "div",
    { className: "reading" },
    el("p", { className: "read" }, el("b", { textContent: readingText(group, rollout) })),
    source
      ? el(
          "div",
          {},
          el(
            "h3",
            {},
            `Attempt ${source.index} `,
            verdictBadge(source),
            el("button", {
              className: "ghost",
              type: "button",
              textContent: "open",
              onclick: () => open(source),
            }),
          ),
          ...attemptText(source),
        )
      : null,
    isFed
      ? el(
          "div",
          {},
          el("h3", { textContent: "Feedback" }),
          el("pre", { className: "text", textContent: rollout.feedback }),
        )
      : null,
    ...(rollout.before_turns || []).flatMap((said, turn) =>
      said === null
        ? []
        : [
            el("h3", { textContent: `Before turn ${turn + 1} of this attempt` }),
            el("pre", { className: "text", textContent: said }),
          ],
    ),
    messages
      ? el(
          "details",
          { open: !source && !isFed },
          el("summary", { textContent: "All it read instead of the prompt" }),
          ...messagesView(messages, group.prompt),
        )
      : null,
  );
}

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el(
    "div",
    { className: "facts" },
    ...shown.map(([label, value]) => el("span", {}, `${label} `, el("b", { textContent: String(value) }))),
  );
}

function turnMessage(role, text) {
  return el(
    "div",
    { className: "message" },
    el("span", { className: "role", textContent: role }),
    el("pre", { className: "text", textContent: String(text) }),
  );
}

function attemptText(rollout) {
  if (!rollout.turns) return [el("pre", { className: "text", textContent: rollout.text })];
  return rollout.turns
    .flatMap((turn) => [
      turnMessage("assistant", turn.text),
      ...[].concat(turn.reply || []).map((reply) => turnMessage(reply.role, reply.content)),
      turn.feedback ? turnMessage("feedback on this turn, for the teacher alone", turn.feedback) : null,
      typeof turn.reward === "number" ? turnMessage("reward of this turn", number(turn.reward)) : null,
    ])
    .filter(Boolean);
}

/* An attempt in full. `browser` is the RolloutBrowser that shows it. */
function rolloutDetail(item, browser) {
  const { group, rollout } = item;
  const run = browser.runs[item.run];
  const credit = run.credit.find((row) => attemptKey({ ...row, run: item.run }) === attemptKey(item));
  const metrics = Object.entries(rollout.metrics || {}).map(([name, value]) => [name, number(value)]);
  const open = (other) => browser.open({ ...item, index: other.index });
  return el(
    "div",
    { className: "card detail" },
    el(
      "div",
      {},
      el(
        "div",
        { className: "heading" },
        el("h2", { textContent: `${group.task}, attempt ${rollout.index}` }),
        verdictBadge(rollout),
        copyLink(item, browser.runs),
        el("button", {
          className: "ghost",
          type: "button",
          textContent: "this task over the run",
          onclick: () => browser.follow(item),
        }),
      ),
      facts([
        ["run", browser.runs.length > 1 ? run.name : null],
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
        el(
          "h3",
          {},
          "Completion ",
          copyButton("copy", () => rollout.text),
        ),
        ...attemptText(rollout),
        el(
          "h3",
          {},
          rollout.feedback ? "Feedback " : "No feedback",
          rollout.feedback ? copyButton("copy", () => rollout.feedback) : null,
        ),
        rollout.feedback ? el("pre", { className: "text", textContent: rollout.feedback }) : null,
      ),
      el(
        "div",
        {},
        el("h3", { textContent: "Prompt" }),
        ...messagesView(group.prompt, group.prompt),
        group.split === "train" ? teacherReading(group, rollout, open) : null,
      ),
    ),
    credit ? el("div", {}, el("h3", { textContent: "Token credit" }), creditView(credit)) : null,
  );
}
