// Writes artifacts/<Contract>.json from what `forge build` left in out/: what a client needs to
// deploy and call a contract, and what it was built from, so that a test can tell without a
// compiler whether the sources have moved on.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

const CONTRACTS = {
  FarToken: "src/FarToken.sol",
  InferenceEscrow: "src/InferenceEscrow.sol",
  SpecificationEscrow: "test/mocks/SpecificationEscrow.sol", // what benchmarks.gas compares with
};
const PACKAGES = ["@openzeppelin/contracts", "solc"];
const SETTINGS = [
  "evm_version",
  "optimizer",
  "optimizer_runs",
  "via_ir",
  "bytecode_hash",
  "cbor_metadata",
];

process.chdir(new URL("..", import.meta.url).pathname);

const readJson = (path) => JSON.parse(readFileSync(path, "utf8"));
const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");
const pick = (keys, object) => Object.fromEntries(keys.map((key) => [key, object[key]]));

const forge = (...args) =>
  execFileSync(process.execPath, ["scripts/forge.mjs", ...args], { encoding: "utf8" });

forge("build", ...Object.values(CONTRACTS));
const settings = pick(SETTINGS, JSON.parse(forge("config", "--json")));
const packages = pick(PACKAGES, readJson("package.json").devDependencies);

mkdirSync("artifacts", { recursive: true });
for (const [name, source] of Object.entries(CONTRACTS)) {
  const { abi, bytecode, metadata } = readJson(`out/${name}.sol/${name}.json`);
  // Packages are named by their versions, which package-lock.json holds to their contents.
  const ownSources = Object.keys(metadata.sources).filter((path) => /^(src|test)\//.test(path));
  const artifact = {
    contractName: name,
    builtFrom: {
      settings,
      packages,
      sourcesSha256: Object.fromEntries(ownSources.sort().map((path) => [path, sha256(path)])),
    },
    abi,
    bytecode: bytecode.object,
  };
  writeFileSync(`artifacts/${name}.json`, `${JSON.stringify(artifact, null, 2)}\n`);
  console.log(`artifacts/${name}.json  ${(bytecode.object.length - 2) / 2} bytes  (${source})`);
}
