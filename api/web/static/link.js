// Asks the wallet (EIP-1193) to sign the platform's text, and hands the signature back.
"use strict";

const ask = document.getElementById("ask");
const problem = document.getElementById("problem");
const buttons = [...ask.querySelectorAll("button")];
const code = ask.dataset.code;

const REFUSED_BY_USER = 4001; // EIP-1193

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.detail);
  return document;
}

function hex(text) {
  const bytes = new TextEncoder().encode(text);
  return "0x" + [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function show(id) {
  ask.hidden = true;
  document.getElementById(id).hidden = false;
}

async function approve() {
  if (!window.ethereum) {
    throw new Error(
      "No wallet here. Open this page in a browser with a wallet extension, or in the browser " +
        "of your wallet's app."
    );
  }
  const [wallet] = await window.ethereum.request({ method: "eth_requestAccounts" });
  const asked = { user_code: code, wallet_address: wallet };
  const { message } = await post("/api/machines/message", asked);
  const signature = await window.ethereum.request({
    method: "personal_sign",
    params: [hex(message), wallet],
  });
  await post("/api/machines/approve", { ...asked, signature });
  document.getElementById("wallet").textContent = wallet;
  show("approved");
}

async function deny() {
  await post("/api/machines/deny", { user_code: code });
  show("denied");
}

async function attempt(action) {
  problem.hidden = true;
  buttons.forEach((button) => (button.disabled = true));
  try {
    await action();
  } catch (error) {
    problem.textContent =
      error.code === REFUSED_BY_USER ? "Your wallet did not sign. Nothing was linked." : error.message;
    problem.hidden = false;
  } finally {
    buttons.forEach((button) => (button.disabled = false));
  }
}

document.getElementById("approve").addEventListener("click", () => attempt(approve));
document.getElementById("deny").addEventListener("click", () => attempt(deny));
