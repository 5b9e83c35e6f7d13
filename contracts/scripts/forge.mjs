// Runs forge and ends as forge ended. The launcher that @foundry-rs/forge 1.7.1 puts on the path
// exits with 0 whatever forge did: with it, failing tests would pass.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";

const system = `${process.platform}-${process.arch === "x64" ? "amd64" : process.arch}`;
const binary = process.platform === "win32" ? "forge.exe" : "forge";
const path = createRequire(import.meta.url).resolve(`@foundry-rs/forge-${system}/bin/${binary}`);

const { status, error } = spawnSync(path, process.argv.slice(2), { stdio: "inherit" });
if (error) throw error;
process.exit(status ?? 1); // null where a signal ended it
