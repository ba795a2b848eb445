"use strict";
/* Which curves the report has. */

const OUTCOMES = { "": "all", _solved: "solved", _failed: "failed", _demonstration: "with demonstration" };
const lengths = (stat) =>
  Object.fromEntries(
    Object.entries(OUTCOMES).map(([suffix, label]) => [`rollouts/length_${stat}${suffix}`, label]),
  );

/* `keys`: metric -> label. `prefix`: every metric that starts so. `share`: the axis shows at least 0 to 1 of it. */
const PANELS = [
  {
    group: "Outcome",
    title: "Solved, held out",
    keys: { "eval/solved": "solved" },
    share: true,
    sparse: true,
  },
  {
    group: "Outcome",
    title: "Solved, training",
    keys: { "train/solved": "solved" },
    share: true,
    canaries: ["solved_collapse"],
  },
  { group: "Outcome", title: "Reward, training", keys: { "train/reward": "reward" } },
  {
    group: "Outcome",
    title: "pass@k, held out",
    prefix: "eval/pass@",
    share: true,
    sparse: true,
    canaries: ["pass_at_k"],
  },
  { group: "Length", title: "Completion length, median", keys: lengths("p50"), unit: "tokens" },
  {
    group: "Length",
    title: "Completion length, p90",
    keys: lengths("p90"),
    unit: "tokens",
    canaries: ["length_growth"],
  },
  {
    group: "Length",
    title: "Completion length, mean",
    keys: { "train/completion_tokens": "training", "eval/completion_tokens": "held out" },
    unit: "tokens",
  },
  {
    group: "Length",
    title: "Truncated attempts",
    keys: { "train/truncated": "truncated" },
    share: true,
    canaries: ["truncation"],
  },
  {
    group: "Policy and teacher",
    title: "Entropy",
    keys: { "policy/entropy": "student", "policy/teacher_entropy": "teacher" },
    unit: "nats",
    canaries: ["entropy_collapse", "entropy_explosion"],
  },
  {
    group: "Policy and teacher",
    title: "Jensen-Shannon, student and teacher",
    keys: { "policy/teacher_js": "JSD" },
    unit: "nats",
    canaries: ["teacher_collapse"],
  },
  {
    group: "Policy and teacher",
    title: "KL to the initial model",
    keys: { "policy/initial_kl": "KL" },
    unit: "nats per token",
    canaries: ["initial_kl"],
  },
  {
    group: "Policy and teacher",
    title: "Attempts with a teacher context",
    keys: {
      "teacher/context_fraction": "any",
      "teacher/demonstration_fraction": "demonstration",
      "teacher/feedback_fraction": "feedback",
      "teacher/cut_fraction": "cut to fit",
    },
    share: true,
  },
  {
    group: "Policy and teacher",
    title: "Teacher probe, gain in solved rate",
    keys: {
      "probe/gain_recipe": "this recipe's context",
      "probe/gain_demonstration": "a demonstration",
      "probe/gain_feedback": "feedback",
      "probe/gain_both": "both",
      "probe/gain_other_task": "another task's demonstration (control)",
      "probe/gain_no_context": "bare task (control)",
    },
    sparse: true,
    canaries: ["teacher_harms"],
  },
  {
    group: "Signs of collapse",
    title: "Repeated n-grams",
    keys: { "rollouts/repeated_ngrams": "repeated" },
    share: true,
    canaries: ["repetition"],
  },
  {
    group: "Signs of collapse",
    title: "Attempts that could not be judged (format)",
    keys: { "rollouts/format_errors": "format" },
    share: true,
    canaries: ["format_errors"],
  },
  {
    group: "Signs of collapse",
    title: "Flat groups",
    keys: { "rollouts/flat_groups": "all rewards equal", "rollouts/flat_failed": "none solved" },
    share: true,
    canaries: ["flat_groups"],
  },
  {
    group: "Signs of collapse",
    title: "Words of doubt per attempt",
    keys: { "rollouts/hedging_words": "words" },
  },
  {
    group: "Optimisation",
    title: "Loss",
    keys: { "loss/total": "total", "loss/distill": "distill", "loss/pg": "policy gradient", "loss/kl": "KL" },
  },
  { group: "Optimisation", title: "Gradient norm", keys: { "optim/grad_norm": "norm" } },
  { group: "Optimisation", title: "Learning rate", keys: { "optim/lr": "rate" }, exact: true },
];
const HIDDEN = /^(step|time\/.*|.*_total|.*_low|.*_high|wall)$/;

/* The panels that have data, those of the list first, then the environment's, then every other metric. */
function panelsOf(runs) {
  const names = new Set(
    runs.flatMap((run) =>
      Object.keys(run.metrics).filter((name) => run.metrics[name].some((v) => v !== null)),
    ),
  );
  const shown = new Set();
  const panels = [];
  for (const panel of PANELS) {
    const listed = panel.prefix
      ? Object.fromEntries(
          [...names]
            .filter((n) => n.startsWith(panel.prefix) && !HIDDEN.test(n))
            .map((n) => [n, n.split("/")[1]]),
        )
      : panel.keys;
    const keys = Object.fromEntries(Object.entries(listed).filter(([name]) => names.has(name)));
    Object.keys(keys).forEach((name) => shown.add(name));
    if (Object.keys(keys).length) panels.push({ ...panel, keys });
  }
  for (const name of [...names].sort()) {
    if (shown.has(name) || HIDDEN.test(name)) continue;
    panels.push({
      group: name.startsWith("env/") ? "Environment" : "Other metrics",
      title: name,
      keys: { [name]: name },
      sparse: name.startsWith("eval/"),
    });
  }
  return panels;
}
