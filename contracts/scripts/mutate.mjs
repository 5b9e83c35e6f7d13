// Mutation testing of InferenceEscrow: changes one thing at a time in its source and runs the unit
// tests. A mutant that no test notices survives, and shows what the tests do not look at.
//
//   node scripts/mutate.mjs [--list] [--only 12,40] [--jobs 2]
//
// The compiler's syntax tree says where each thing stands. Only the contract is compiled for each
// mutant; the tests were compiled once, and load it by name (forge's dynamic test linking).
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { isMainThread, parentPort, threadId, Worker, workerData } from "node:worker_threads";

const CONTRACT = "InferenceEscrow";
const SOURCE = `src/${CONTRACT}.sol`;
const GOAL = 0.95;

// Fuzzing, invariants and gas take long, and unit tests are to find everything by themselves.
const TESTS = ["test", "--no-match-test", "^(testFuzz|invariant)_", "--no-match-contract", "GasTest"];
const ENVIRONMENT = { ...process.env, FOUNDRY_CODE_SIZE_LIMIT: "49152" }; // it is not optimized
const DYNAMIC = "--dynamic-test-linking";

if (isMainThread) process.chdir(new URL("..", import.meta.url).pathname); // for its workers as well
const require = createRequire(import.meta.url);

// ------------------------------------------------------------------ compiling

function compile(source, selection) {
  const solc = require("solc");
  const input = {
    language: "Solidity",
    sources: { [SOURCE]: { content: source } },
    settings: {
      evmVersion: "cancun",
      optimizer: { enabled: false }, // three times as quick, and the code does the same
      metadata: { bytecodeHash: "none", appendCBOR: false },
      outputSelection: selection,
    },
  };
  const read = (path) => ({
    contents: readFileSync(path.startsWith("@") ? `node_modules/${path}` : path, "utf8"),
  });
  return JSON.parse(solc.compile(JSON.stringify(input), { import: read }));
}

function forge(folder, ...args) {
  return execFileSync(process.execPath, ["scripts/forge.mjs", ...args], {
    cwd: folder,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
  });
}

// -------------------------------------------------------------------- mutants

// Comparisons move by one; that they are there at all is what "true" and "false" in their place ask.
const SWAPS = {
  "+": "-", "-": "+", "*": "/", "/": "*", "&": "|", ">>": "<<", "<<": ">>",
  "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
  "+=": "-=", "-=": "+=",
};

// All mutants of the contract, in the order of the source: { line, what, start, end, text }.
function mutants(source) {
  const { sources, errors = [] } = compile(source, { [SOURCE]: { "": ["ast"] } });
  const broken = errors.filter(({ severity }) => severity === "error");
  if (broken.length) throw new Error(broken[0].formattedMessage);
  const bytes = Buffer.from(source);
  const found = [];
  const range = (node) => {
    const [start, length] = node.src.split(":").map(Number);
    return [start, start + length];
  };
  const code = ([start, end]) => bytes.subarray(start, end).toString();
  const add = ([start, end], text, shown = [start, end]) => {
    if (code([start, end]) === text) return;
    const line = bytes.subarray(0, start).toString().split("\n").length;
    const becomes = code([shown[0], start]) + text + code([end, shown[1]]);
    const what = `${code(shown)}  →  ${becomes || "(nothing)"}`.replace(/\s+/g, " ");
    found.push({ line, what, start, end, text });
  };
  // The operator stands in what lies between two operands.
  const swap = (node, left, right) => {
    const gap = [range(left)[1], range(right)[0]];
    const other = SWAPS[node.operator];
    if (other) add(gap, code(gap).replace(node.operator, other), range(node));
  };

  const visit = (node) => {
    if (Array.isArray(node)) return node.forEach(visit);
    if (node === null || typeof node !== "object") return;
    switch (node.nodeType) {
      case "BinaryOperation":
        swap(node, node.leftExpression, node.rightExpression);
        break;
      case "Assignment":
        swap(node, node.leftHandSide, node.rightHandSide);
        break;
      case "UnaryOperation":
        if (node.operator === "!") add(range(node), code(range(node.subExpression)));
        if (node.operator === "++") add(range(node), code(range(node)).replace("++", "--"));
        break;
      case "Conditional":
        add(range(node), code(range(node.trueExpression)));
        add(range(node), code(range(node.falseExpression)));
        break;
      case "Literal":
        if (node.kind === "number") {
          const value = code(range(node));
          add(range(node), /^\d+$/.test(value) ? String(Number(value) + 1) : `(1 + ${value})`);
        }
        break;
      case "IfStatement":
        add(range(node.condition), "true");
        add(range(node.condition), "false");
        break;
      case "Return":
        if (node.expression?.typeDescriptions?.typeString === "bool") {
          add(range(node.expression), "true");
          add(range(node.expression), "false");
        }
        break;
      case "ModifierInvocation":
        if (node.kind !== "baseConstructorSpecifier") add(range(node), "");
        break;
    }
    if (["ExpressionStatement", "EmitStatement"].includes(node.nodeType)) {
      const [start, end] = range(node);
      add([start, end + 1], "", [start, end + 1]); // with its semicolon
    }
    if (node.nodeType === "UnaryOperation" && node.operator === "delete") return;
    for (const [key, child] of Object.entries(node)) {
      if (key === "documentation" || key === "typeDescriptions") continue;
      // Types and names are no code: an integer there cannot be another one.
      if (key === "typeName" || key === "parameters" || key === "returnParameters") continue;
      if (child && typeof child === "object") visit(child);
    }
  };
  visit(sources[SOURCE].ast.nodes.find((node) => node.name === CONTRACT).nodes);

  const seen = new Set();
  return found
    .sort((a, b) => a.start - b.start || a.end - b.end)
    .filter((mutant) => {
      const key = `${mutant.start}:${mutant.end}:${mutant.text}`;
      return !seen.has(key) && seen.add(key);
    })
    .map((mutant, index) => ({ id: index + 1, ...mutant }));
}

const apply = (source, { start, end, text }) => {
  const bytes = Buffer.from(source);
  return bytes.subarray(0, start).toString() + text + bytes.subarray(end).toString();
};

// -------------------------------------------------------------------- workers

// forge asks the compiler for the tests' syntax trees at every start. The answer is always the same.
const REMEMBERING = `#!/usr/bin/env node
const { execFileSync } = require("node:child_process");
const { createHash } = require("node:crypto");
const { existsSync, mkdirSync, readFileSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const args = process.argv.slice(2);
const input = args.includes("--version") ? "" : readFileSync(0);
const name = createHash("sha256").update(args.includes("--version") ? "version" : input).digest("hex");
const folder = join(__dirname, "answers");
const file = join(folder, name);
if (!existsSync(file)) {
  const options = { input, maxBuffer: 2 ** 30 };
  const answer = execFileSync(process.execPath, [join(__dirname, "real-solc"), ...args], options);
  mkdirSync(folder, { recursive: true });
  writeFileSync(file, answer);
}
process.stdout.write(readFileSync(file));
`;

// A copy of the folder whose tests were compiled, and in which a mutant's code takes its place.
function prepare() {
  const folder = mkdtempSync(join(tmpdir(), "mutate-"));
  for (const part of ["src", "test", "scripts", "snapshots", "foundry.toml", "package.json"]) {
    cpSync(part, join(folder, part), { recursive: true });
  }
  symlinkSync(join(process.cwd(), "node_modules"), join(folder, "node_modules"));
  cpSync("scripts/solc", join(folder, "scripts", "real-solc"));
  writeFileSync(join(folder, "scripts", "solc"), REMEMBERING);
  forge(folder, "build", DYNAMIC);
  return folder;
}

function copyOf(folder) {
  const copy = `${folder}-${threadId}`;
  cpSync(folder, copy, { recursive: true, verbatimSymlinks: true });
  return copy;
}

function put(folder, { evm }) {
  const path = join(folder, "out", `${CONTRACT}.sol`, `${CONTRACT}.json`);
  const artifact = JSON.parse(readFileSync(path, "utf8"));
  artifact.bytecode.object = `0x${evm.bytecode.object}`;
  artifact.deployedBytecode.object = `0x${evm.deployedBytecode.object}`;
  writeFileSync(path, JSON.stringify(artifact));
}

const run = (folder) =>
  new Promise((resolve) => {
    const args = ["scripts/forge.mjs", ...TESTS, "--fail-fast", DYNAMIC];
    const stdio = ["ignore", "pipe", "pipe"];
    const child = spawn(process.execPath, args, { cwd: folder, env: ENVIRONMENT, stdio });
    let output = "";
    child.stdout.on("data", (data) => (output += data));
    child.stderr.on("data", (data) => (output += data));
    child.on("close", (status) => resolve({ status, output }));
  });

// "uncompilable", "killed" or "survived".
async function judge(folder, source) {
  const selection = { [SOURCE]: { [CONTRACT]: ["evm.bytecode.object", "evm.deployedBytecode.object"] } };
  const { contracts, errors = [] } = compile(source, selection);
  if (errors.some(({ severity }) => severity === "error")) return "uncompilable";
  put(folder, contracts[SOURCE][CONTRACT]);
  const { status, output } = await run(folder);
  if (status === 0) return "survived";
  if (!/\d+ failed/.test(output) && !/FAIL/.test(output)) throw new Error(output);
  return "killed";
}

async function work() {
  const folder = copyOf(workerData);
  try {
    const source = readFileSync(SOURCE, "utf8");
    if ((await judge(folder, source)) !== "survived") throw new Error("the tests fail unchanged");
    parentPort.postMessage({ ready: true });
    for await (const mutant of messages(parentPort)) {
      const verdict = await judge(folder, apply(source, mutant));
      parentPort.postMessage({ id: mutant.id, verdict });
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
    parentPort.close();
  }
}

async function* messages(port) {
  const queue = [];
  let wake;
  port.on("message", (message) => {
    queue.push(message);
    wake?.();
  });
  for (;;) {
    while (queue.length) {
      const message = queue.shift();
      if (message === null) return;
      yield message;
    }
    await new Promise((resolve) => (wake = resolve));
  }
}

// ----------------------------------------------------------------------- main

async function main() {
  const { values } = parseArgs({
    options: {
      list: { type: "boolean" },
      only: { type: "string" },
      jobs: { type: "string", default: "2" },
    },
  });
  const wanted = values.only?.split(",").map(Number);
  const all = mutants(readFileSync(SOURCE, "utf8"));
  const chosen = all.filter(({ id }) => !wanted || wanted.includes(id));
  if (values.list) {
    for (const { id, line, what } of chosen) console.log(`${id}\t${line}\t${what}`);
    return;
  }
  const folder = prepare();
  const verdicts = new Map();
  const waiting = [...chosen];
  await Promise.all(
    Array.from({ length: Number(values.jobs) }, () =>
      new Promise((resolve, reject) => {
        const worker = new Worker(fileURLToPath(import.meta.url), { workerData: folder });
        worker.on("error", reject);
        worker.on("exit", resolve);
        worker.on("message", ({ id, verdict }) => {
          if (id) {
            verdicts.set(id, verdict);
            const { line, what } = all[id - 1];
            console.log(`${verdict.padEnd(12)} ${id}\tline ${line}: ${what}`);
          }
          worker.postMessage(waiting.shift() ?? null);
        });
      }),
    ),
  );
  rmSync(folder, { recursive: true, force: true });
  process.exitCode = report(chosen, verdicts) ? 0 : 1;
}

function report(chosen, verdicts) {
  const of = (verdict) => chosen.filter(({ id }) => verdicts.get(id) === verdict);
  const killed = of("killed").length;
  const survived = of("survived");
  const share = killed / (killed + survived.length);
  console.log(`\n${chosen.length} mutants, ${of("uncompilable").length} of them do not compile.`);
  console.log(`Killed: ${killed} of ${killed + survived.length} (${(100 * share).toFixed(1)} %).`);
  for (const { id, line, what } of survived) console.log(`  survived ${id}\tline ${line}: ${what}`);
  return share >= GOAL;
}

await (isMainThread ? main() : work());
